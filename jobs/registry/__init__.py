"""Model registry: versions of models and the champion among them, kept by MLflow."""
