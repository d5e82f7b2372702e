"""Versions of models, and which one serves; MLflow keeps them."""
