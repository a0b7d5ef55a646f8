"""Vectors and scores by key: in this process, in Redis, and computed once at a time."""
