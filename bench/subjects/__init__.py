"""The subjects to measure. Each has a name and a batch size, and computes the same results from the same texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]


@dataclass(slots=True)
class Computed:
    """What an engine computed in its last call: number of tokens, with shared ones counted once, and of texts."""

    tokens: int = 0
    texts: int = 0


class Embedder(Protocol):
    """Converts texts to unit vectors."""

    name: str
    batch_size: int

    def embed(self, texts: Sequence[str], *, queries: bool) -> Vectors:
        """Vectors `[len(texts), width]`. With `queries`, each text gets the model's default query prompt."""

    def close(self) -> None:
        """Releases all resources."""


class Reranker(Protocol):
    """Computes probabilities of queries and documents."""

    name: str
    batch_size: int

    def rerank(self, requests: Sequence[tuple[str, Sequence[str]]]) -> Scores:
        """The probabilities of all documents of all (query, documents) pairs, in order."""

    def close(self) -> None:
        """Releases all resources."""
