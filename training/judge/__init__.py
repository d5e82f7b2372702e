"""How good scores are: metrics, comparisons, calibration and the gate, with NumPy alone."""
