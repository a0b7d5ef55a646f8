"""EmbedService and RerankService, once for workers and gateway: the meaning of fields, the order of results.

A worker computes, the gateway caches and spreads; each is a backend (`services.api.backend`) of the same two services.
"""
