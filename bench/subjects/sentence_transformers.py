"""sentence-transformers as documented for Qwen3. It sorts by length and builds batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer

from bench.subjects import Scores, Vectors
from bench.subjects.recipe import number_format


class SentenceTransformersEmbedder:
    """`SentenceTransformer.encode`."""

    name = "sentence-transformers"

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model, self.batch_size = model, batch_size

    @staticmethod
    def load(folder: Path, device: str) -> Any:
        """The model, which several batch sizes share."""
        return SentenceTransformer(
            str(folder),
            device=device,
            model_kwargs={"dtype": number_format(device)},
            processor_kwargs={"padding_side": "left"},
        )

    def embed(self, texts: Sequence[str], *, queries: bool) -> Vectors:
        """See `Embedder`."""
        vectors: Vectors = self._model.encode(
            list(texts),
            prompt_name="query" if queries else None,
            batch_size=self.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return vectors

    def close(self) -> None:
        """See `Embedder`."""


class SentenceTransformersReranker:
    """`CrossEncoder.predict`, which computes causal rerankers with its LogitScore module."""

    name = "sentence-transformers"

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model, self.batch_size = model, batch_size

    @staticmethod
    def load(folder: Path, device: str) -> Any:
        """The model, which several batch sizes share."""
        return CrossEncoder(str(folder), device=device, model_kwargs={"dtype": number_format(device)})

    def rerank(self, requests: Sequence[tuple[str, Sequence[str]]]) -> Scores:
        """See `Reranker`."""
        pairs = [(query, document) for query, documents in requests for document in documents]
        scores = self._model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False)
        return np.asarray(scores, np.float64)

    def close(self) -> None:
        """See `Reranker`."""
