"""A validation as HTML, JSON, JUnit and Markdown."""
