"""Engines by key inside a bundle: build, record, compatibility, known issues."""
