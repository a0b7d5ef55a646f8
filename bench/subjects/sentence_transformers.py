"""sentence-transformers as documented. It sorts by length and builds batches."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer

from bench.shapes import is_encoder
from bench.subjects import Computed, Requests, Scores, Vectors
from bench.subjects.recipe import asked, name_of


def encode(model: Any, texts: Sequence[str], queries: bool, batch_size: int) -> Vectors:
    """`SentenceTransformer.encode`."""
    vectors: Vectors = model.encode(
        list(texts),
        prompt_name="query" if queries and "query" in model.prompts else None,
        batch_size=batch_size,
        normalize_embeddings=True,
        show_progress_bar=False,
    )
    return vectors


class SentenceTransformersEmbedder:
    """`SentenceTransformer.encode`."""

    def __init__(self, folder: Path, device: str, format: str | None) -> None:
        self.computed = Computed()
        encoder = is_encoder(json.loads((folder / "config.json").read_text()))
        self._model: Any = SentenceTransformer(
            str(folder),
            device=device,
            model_kwargs=asked(format),
            processor_kwargs=None if encoder else {"padding_side": "left"},  # as Qwen3's cards say
        )
        self.format = name_of(next(self._model.parameters()).dtype)

    def embed(self, texts: Sequence[str], queries: bool, batch_size: int) -> Vectors:
        """See `Model`."""
        return encode(self._model, texts, queries, batch_size)

    def close(self) -> None:
        """See `Model`."""


class SentenceTransformersReranker:
    """`CrossEncoder.predict`: of causal rerankers with its LogitScore module, of others the sigmoid of their logit."""

    def __init__(self, folder: Path, device: str, format: str | None) -> None:
        self.computed = Computed()
        self._model: Any = CrossEncoder(str(folder), device=device, model_kwargs=asked(format))
        self.format = name_of(next(self._model.parameters()).dtype)

    def rerank(self, requests: Requests, batch_size: int) -> Scores:
        """See `Model`."""
        pairs = [(query, document) for query, documents in requests for document in documents]
        scores = self._model.predict(pairs, batch_size=batch_size, show_progress_bar=False)
        return np.asarray(scores, np.float64)

    def close(self) -> None:
        """See `Model`."""
