"""One thin program per verb."""
