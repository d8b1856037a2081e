"""What a pipeline is made of: one module a stage, and the methods that the stages use."""
