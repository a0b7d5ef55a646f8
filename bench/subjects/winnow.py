"""Our engine, in this process, as a worker uses it."""

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bench.subjects import Computed, Scores, Vectors
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.types import BatchReport, EmbedItem, EngineSettings, InputType, Lane, RerankItem

_QUEUE_TOKENS = 1 << 22  # admission is not what is measured
_MAX_TOKENS = 8192  # the engine's default


def _count(computed: Computed, report: BatchReport) -> None:
    computed.tokens += report.tokens
    computed.texts += report.segments


def settings(folder: Path, device: str, batch_tokens: int = 0) -> EngineSettings:
    """The engine's own defaults, but for the queue and for models with fewer positions than its default limit."""
    positions = int(json.loads((folder / "config.json").read_text())["max_position_embeddings"])
    return EngineSettings(
        str(folder),
        device=device,
        max_tokens=min(_MAX_TOKENS, positions),
        batch_tokens=batch_tokens,
        queue_tokens=_QUEUE_TOKENS,
    )


class WinnowEmbedder:
    """`batch_size` is the number of texts in one request; the engine makes its own steps of them."""

    name = "winnow"

    def __init__(self, folder: Path, device: str, batch_size: int, batch_tokens: int = 0) -> None:
        self.batch_size = batch_size
        self.computed = Computed()
        self.engine = EmbedEngine.load(settings(folder, device, batch_tokens))
        self.engine.on_batch = partial(_count, self.computed)
        self.loop = asyncio.Runner()
        self.loop.run(_start(self.engine))

    def embed(self, texts: Sequence[str], *, queries: bool) -> Vectors:
        """See `Embedder`."""
        self.computed.tokens = self.computed.texts = 0
        kind = InputType.QUERY if queries else InputType.DOCUMENT
        result = self.loop.run(self.engine.embed(texts, input_type=kind, lane=Lane.INTERACTIVE))
        return np.stack([_sound(item).vector for item in result.items])

    def close(self) -> None:
        """See `Embedder`."""
        self.loop.run(self.engine.drain())
        self.engine.close()
        self.loop.close()


class WinnowReranker:
    """All requests at once, as from several callers."""

    name = "winnow"

    def __init__(self, folder: Path, device: str, batch_size: int, batch_tokens: int = 0) -> None:
        self.batch_size = batch_size
        self.computed = Computed()
        self._engine = RerankEngine.load(settings(folder, device, batch_tokens))
        self._engine.on_batch = partial(_count, self.computed)
        self._loop = asyncio.Runner()
        self._loop.run(_start(self._engine))

    def rerank(self, requests: Sequence[tuple[str, Sequence[str]]]) -> Scores:
        """See `Reranker`."""
        self.computed.tokens = self.computed.texts = 0
        return self._loop.run(self._rerank(requests))

    async def _rerank(self, requests: Sequence[tuple[str, Sequence[str]]]) -> Scores:
        results = await asyncio.gather(
            *(self._engine.rerank(query, documents, lane=Lane.INTERACTIVE) for query, documents in requests)
        )
        return np.array([_scored(item).probability for result in results for item in result.items])

    def close(self) -> None:
        """See `Reranker`."""
        self._loop.run(self._engine.drain())
        self._engine.close()
        self._loop.close()


async def _start(engine: EmbedEngine | RerankEngine) -> None:
    engine.start()


def _sound(item: object) -> EmbedItem:
    if not isinstance(item, EmbedItem):
        raise RuntimeError(f"winnow failed a text: {item}")
    return item


def _scored(item: object) -> RerankItem:
    if not isinstance(item, RerankItem):
        raise RuntimeError(f"winnow failed a document: {item}")
    return item
