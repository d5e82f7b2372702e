"""Scores over HTTP: the interface, the replicas of Ray Serve behind it, and what is counted."""
