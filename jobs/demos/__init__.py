"""Demos: the whole pipeline on generated logs, and a week of retraining."""
