"""Forecasts for clusters that are not at hand: a sharding plan, and rows/s."""
