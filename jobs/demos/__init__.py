"""What the demos play."""
