"""Static pages and their templates."""
