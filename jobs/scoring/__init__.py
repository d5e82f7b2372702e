"""Raw rows to scores, on this machine or on Spark's executors."""
