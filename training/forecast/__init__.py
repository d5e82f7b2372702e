"""What a training would need and how fast it would be on machines that are not here."""
