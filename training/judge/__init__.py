"""Metrics, comparisons, calibration and the gate, with NumPy alone."""
