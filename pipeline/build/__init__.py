"""A raw log to a dataset, with Spark."""
