"""Start of trainings under Ray and builds under Spark: run guard, cluster, workers, progress bar."""
