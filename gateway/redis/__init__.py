"""The client of Redis: connections, clusters, faults, URLs."""
