"""Qwen3: config, weights, forward pass and the reranker's head."""
