"""Graphs become engines, in a process of their own."""
