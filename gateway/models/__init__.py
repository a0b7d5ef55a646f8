"""The worker pools, and one cached model over each."""
