"""Engines answer on a GPU."""
