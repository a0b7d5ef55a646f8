"""Our engine, as a worker has it. It makes its own steps of what it is given: a batch size means nothing to it."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from bench.subjects import Computed, Requests, Scores, Vectors
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.types import BatchReport, EmbedItem, EngineSettings, InputType, Priority, RerankItem

E = TypeVar("E", EmbedEngine, RerankEngine)

_QUEUE_TOKENS = 1 << 22  # admission is not what is measured


def settings(folder: Path, device: str, batch_tokens: int = 0, format: str | None = None) -> EngineSettings:
    """The engine's own defaults, but for the queue."""
    return EngineSettings(
        str(folder),
        device=device,
        dtype=format or "auto",
        batch_tokens=batch_tokens,
        queue_tokens=_QUEUE_TOKENS,
        queue_seconds=math.inf,
    )


class _Running(Generic[E]):
    """A started engine and its event loop."""

    def __init__(self, engine: E) -> None:
        self.format = engine.info.dtype
        self.computed = Computed()
        self._engine: E = engine
        self._loop = asyncio.Runner()
        engine.on_batch = self._count
        self._loop.run(self._start())

    def close(self) -> None:
        """See `Model`."""
        self._loop.run(self._engine.drain())
        self._engine.close()
        self._loop.close()

    async def _start(self) -> None:
        self._engine.start()

    def _count(self, report: BatchReport) -> None:
        self.computed.tokens += report.tokens
        self.computed.texts += report.segments


class WinnowEmbedder(_Running[EmbedEngine]):
    """All texts in one request."""

    def __init__(self, folder: Path, device: str, format: str | None, batch_tokens: int = 0) -> None:
        super().__init__(EmbedEngine.load(settings(folder, device, batch_tokens, format)))

    def embed(self, texts: Sequence[str], queries: bool, batch_size: int) -> Vectors:
        """See `Model`."""
        self.computed = Computed()
        kind = InputType.QUERY if queries else InputType.DOCUMENT
        result = self._loop.run(self._engine.embed(texts, input_type=kind, priority=Priority.INTERACTIVE))
        return np.stack([_sound(item).vector for item in result.items])


class WinnowReranker(_Running[RerankEngine]):
    """All requests at once, as from several callers."""

    def __init__(self, folder: Path, device: str, format: str | None, batch_tokens: int = 0) -> None:
        super().__init__(RerankEngine.load(settings(folder, device, batch_tokens, format)))

    def rerank(self, requests: Requests, batch_size: int) -> Scores:
        """See `Model`."""
        self.computed = Computed()
        return self._loop.run(self._all(requests))

    async def _all(self, requests: Requests) -> Scores:
        results = await asyncio.gather(
            *(self._engine.rerank(query, documents, priority=Priority.INTERACTIVE) for query, documents in requests)
        )
        return np.array([_scored(item).probability for result in results for item in result.items])


def _sound(item: object) -> EmbedItem:
    if not isinstance(item, EmbedItem):
        raise RuntimeError(f"winnow failed a text: {item}")
    return item


def _scored(item: object) -> RerankItem:
    if not isinstance(item, RerankItem):
        raise RuntimeError(f"winnow failed a document: {item}")
    return item
