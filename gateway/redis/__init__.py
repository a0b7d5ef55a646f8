"""The Redis client: connections, clusters, faults, URLs."""
