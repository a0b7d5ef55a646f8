"""Every published figure, one command each: `python -m bench --help`."""
