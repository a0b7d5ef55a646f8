"""The RerankService worker: `python -m services.rerank`."""
