"""A dataset's rows on their way to the model: opened, checked, put in order and laid out as batches."""
