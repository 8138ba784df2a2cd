"""Faults put in on purpose, which the gates must catch."""
