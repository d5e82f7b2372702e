"""Training of one rank, from the first step to the last metric."""
