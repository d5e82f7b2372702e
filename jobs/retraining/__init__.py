"""Retraining: its steps, its folder, data checks, and its status; ``jobs.retrain`` runs it."""
