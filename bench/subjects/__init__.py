"""What is measured. Each subject has a name, a number format, a batch size, and turns the same texts into numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Requests = Sequence[tuple[str, Sequence[str]]]
"""Queries, each with its documents."""


@dataclass(slots=True)
class Computed:
    """What an engine computed in its last call: number of tokens, with shared ones counted once, and of texts."""

    tokens: int = 0
    texts: int = 0


class MissingError(Exception):
    """A subject that cannot be had on this machine; the message is one line and says what to do."""


class SubjectError(Exception):
    """A subject failed; the message is one line."""


class Model(Protocol):
    """A loaded model. One of `embed` and `rerank` works, by the role that it was loaded for."""

    format: str
    """What it computes in: `float32`, `bfloat16`, `float16` or `int8`."""
    computed: Computed
    """Of its last call; zero if it does not count."""

    def embed(self, texts: Sequence[str], queries: bool, batch_size: int) -> Vectors:
        """`[len(texts), width]`, of length 1; with `queries` each text gets the model's default query prompt."""

    def rerank(self, requests: Requests, batch_size: int) -> Scores:
        """The probabilities of all documents of all requests, in order."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(eq=False, slots=True)
class Subject:
    """A model at one batch size. `default`: it chose its number format itself, as it does for its users."""

    name: str
    model: Model
    batch_size: int
    default: bool

    @property
    def format(self) -> str:
        """See `Model`."""
        return self.model.format

    def embed(self, texts: Sequence[str], *, queries: bool) -> Vectors:
        """See `Model`."""
        return self.model.embed(texts, queries, self.batch_size)

    def rerank(self, requests: Requests) -> Scores:
        """See `Model`."""
        return self.model.rerank(requests, self.batch_size)
