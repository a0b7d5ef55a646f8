"""Model families: one folder each, and one line in `registry`."""
