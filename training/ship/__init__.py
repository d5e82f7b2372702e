"""A trained model to an artifact, and an artifact to scores."""
