"""Forecasts: memory and speed of a training on a cluster that is not at hand."""
