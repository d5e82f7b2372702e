"""Scoring over HTTP: interface, replicas on Ray Serve, and metrics."""
