"""Measures a bundle's engine on the machine that it is on."""
