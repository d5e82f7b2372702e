"""HTML that opens without a network: a run's report, and the page on retraining."""
