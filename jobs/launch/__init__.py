"""A training under Ray and a build under Spark: the run's guard, the cluster, its workers, what is shown of it."""
