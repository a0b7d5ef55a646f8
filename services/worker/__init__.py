"""Code shared by embed and rerank workers: the gRPC application, error conversion, settings and telemetry."""
