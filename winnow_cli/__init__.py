"""The `winnow` command line: a client of the gateway."""
