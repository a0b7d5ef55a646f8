"""The `winnow` command line, and one small example per language."""
