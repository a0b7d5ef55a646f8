"""The gateway: retrieve-then-rerank in one call, and cached embedding and reranking over the worker pools."""
