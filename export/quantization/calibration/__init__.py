"""What products see when a model answers, and weights that are rounded for it."""
