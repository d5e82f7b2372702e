"""Inspection of a raw log: its layout, a sample of its rows, what each column is, and a first config."""
