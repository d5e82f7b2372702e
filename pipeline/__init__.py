"""Raw logs to Parquet shards and a manifest, with Spark."""
