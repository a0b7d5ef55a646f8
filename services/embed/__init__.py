"""The EmbedService worker: `python -m services.embed`."""
