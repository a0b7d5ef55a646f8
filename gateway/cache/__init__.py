"""Caches of vectors and scores, in this process and in Redis, and single-flight for what they lack."""
