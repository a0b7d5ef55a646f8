"""The interface between the services and what computes: a worker's engine, or the gateway's cached pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.rpc import status_pb2

from services.api.options import EmbedOptions, RerankOptions
from services.api.vectors import F32
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """A text that has a vector. `tokens` counts prompt and special tokens too."""

    tokens: int
    truncated: bool
    cache_hit: bool = False


@dataclass(frozen=True, slots=True)
class FailedItem:
    """A text or document without a result. `tokens`: how many it has, or a lower bound; 0 if they were not counted."""

    error: status_pb2.Status
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """The outcome for each text, in order: embedded, or the error in its place.

    `rows(dimensions)`: float32 `[n, dimensions]`, one for each embedded text, of unit length; zeros if the first
    `dimensions` values of a vector are zero. `timings` has no total.
    """

    model: embed_pb2.GetModelResponse
    items: Sequence[EmbeddedText | FailedItem]
    rows: Callable[[int], F32]
    timings: common_pb2.Timings


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A document that has a score. `probability` is the sigmoid of `logit`."""

    logit: float
    probability: float
    tokens: int
    truncated: bool
    cache_hit: bool = False


@dataclass(frozen=True, slots=True)
class Reranked:
    """The outcome for each document, in order: scored, or the error in its place. `timings` has no total."""

    model: rerank_pb2.GetModelResponse
    items: Sequence[ScoredDocument | FailedItem]
    timings: common_pb2.Timings


class EmbedBackend(Protocol):
    """Embeds texts. `deadline`: a time of the event loop's clock. All methods raise Problem."""

    async def model(self, deadline: float | None = None) -> embed_pb2.GetModelResponse:
        """The model that is served now."""

    async def embed(
        self, texts: Sequence[str], options: EmbedOptions, deadline: float | None, *, part: int = 0
    ) -> Embedded:
        """All texts by one model. `part`: the number of a stream's chunk; later ones may be traced in less detail."""


class RerankBackend(Protocol):
    """Scores documents. As EmbedBackend."""

    async def model(self, deadline: float | None = None) -> rerank_pb2.GetModelResponse:
        """The model that is served now."""

    async def rerank(self, documents: Sequence[str], options: RerankOptions, deadline: float | None) -> Reranked:
        """All documents by one model."""


def embed_usage(items: Sequence[EmbeddedText | FailedItem]) -> common_pb2.Usage:
    """Tokens and cache use of texts."""
    return _usage([item for item in items if isinstance(item, EmbeddedText)], len(items))


def rerank_usage(items: Sequence[ScoredDocument | FailedItem]) -> common_pb2.Usage:
    """Tokens and cache use of documents."""
    return _usage([item for item in items if isinstance(item, ScoredDocument)], len(items))


def _usage(answered: Sequence[EmbeddedText | ScoredDocument], count: int) -> common_pb2.Usage:
    hits = sum(item.cache_hit for item in answered)
    return common_pb2.Usage(
        input_tokens=sum(item.tokens for item in answered), cache_hits=hits, cache_misses=len(answered) - hits
    )
