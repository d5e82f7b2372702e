"""HTML pages that open without a network: reports, plans, leaderboards, retraining, the HTTP interface."""
