"""Work sent to Spark's executors: portions of raw files, and tasks over them."""
