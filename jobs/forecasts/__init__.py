"""Forecasts of clusters that are not here: a sharding plan, and rows a second."""
