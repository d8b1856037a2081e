"""The engine: reads pipeline.yaml, plans, runs and records. Knows no machine learning."""
