"""A validation from end to end: plan, reference, engine, search, report, verdict."""
