"""The TF4CTR network: embeddings, selection, encoders, fusion, objective."""
