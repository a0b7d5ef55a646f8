"""What the embed and the rerank worker share: one engine as a gRPC application, its errors, settings and spans."""
