"""Comparisons of models: leaderboards and hyper-parameter searches."""
