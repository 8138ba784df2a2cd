"""The values of stored weights, read in blocks and without torch."""
