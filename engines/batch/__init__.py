"""A corpus of requests through a bundle's engine: rows in, part files out, whole after any end of the process."""
