"""What a retraining has to know and to do; ``jobs.retrain`` does it step by step."""
