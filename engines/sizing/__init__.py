"""Limits of an engine, and what they cost."""
