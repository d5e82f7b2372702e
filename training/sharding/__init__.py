"""Tables over ranks, their optimizers, and their state in checkpoints."""
