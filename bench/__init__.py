"""Benchmarks: one command for each published figure. See `python -m bench --help`."""
