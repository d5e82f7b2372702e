"""Batch scoring of raw logs, in one process or on Spark's executors."""
