"""What is measured. Each subject has a name, a batch size, and turns the same texts into the same numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]


@dataclass(slots=True)
class Computed:
    """What an engine really computed in its last call: tokens, each shared one once, of how many texts."""

    tokens: int = 0
    texts: int = 0


class Embedder(Protocol):
    """Texts to unit vectors."""

    name: str
    batch_size: int

    def embed(self, texts: Sequence[str], *, queries: bool) -> Vectors:
        """`[len(texts), width]`; with `queries` each text gets the model's default query prompt."""

    def close(self) -> None:
        """Give back what it holds."""


class Reranker(Protocol):
    """Queries and documents to probabilities."""

    name: str
    batch_size: int

    def rerank(self, requests: Sequence[tuple[str, Sequence[str]]]) -> Scores:
        """The probabilities of all documents of all (query, documents), in order."""

    def close(self) -> None:
        """Give back what it holds."""
