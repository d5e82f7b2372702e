"""Generated raw logs whose click probability is known."""
