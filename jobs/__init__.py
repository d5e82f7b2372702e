"""Programs: one thin module a verb, and packages with what they call."""
