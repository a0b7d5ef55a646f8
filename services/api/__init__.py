"""EmbedService and RerankService, for workers and gateway alike: the meaning of fields, the order of results.

A worker computes, the gateway caches and balances; each is a backend (`services.api.backend`) of the same two services.
"""
