"""A training under Ray: its run's locks, its cluster, its workers."""
