"""Embedding models on Qwen2, such as gte-Qwen2 and stella: causal or not, by the last token or the mean."""
