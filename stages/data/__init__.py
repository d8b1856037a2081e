"""Data sources: each writes fixed train, validation and test splits."""
