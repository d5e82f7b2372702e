"""Profiles of a dataset's features: histograms kept beside it, and the drift between two of them."""
