"""The roof: the `qv-export` command line."""
