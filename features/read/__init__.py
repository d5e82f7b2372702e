"""Readers of raw logs: files, or portions of them, -> blocks of rows as Arrow columns (``features.raw_block``)."""
