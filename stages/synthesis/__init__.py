"""Data-free synthesis: generators and the losses that train them from teachers alone."""
