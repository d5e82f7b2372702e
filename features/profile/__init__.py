"""What the features of a dataset look like: counts over bins, kept beside it, and how far two of them differ."""
