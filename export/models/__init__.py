"""Model families: one folder each, and the typed configuration that all of them are read into."""
