"""Winnow's engine, in its own process, as in a worker.

A thread that calls torch has a team of OpenMP threads. Two teams in one process, ours and that of a peer, have more
threads than there are processors. OpenMP then suspends them after every kernel, which makes both slower.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bench.subjects import Computed, Scores, Vectors
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.types import BatchReport, EmbedItem, EngineSettings, InputType, Priority, RerankItem

_QUEUE_TOKENS = 1 << 22  # admission is not what is measured
_MAX_TOKENS = 8192  # the engine's default


def settings(folder: Path, device: str, batch_tokens: int = 0) -> EngineSettings:
    """The engine's defaults, except for the queue and for models with fewer positions than the default limit."""
    positions = int(json.loads((folder / "config.json").read_text())["max_position_embeddings"])
    return EngineSettings(
        str(folder),
        device=device,
        max_tokens=min(_MAX_TOKENS, positions),
        batch_tokens=batch_tokens,
        queue_tokens=_QUEUE_TOKENS,
    )


class WinnowEmbedder:
    """`batch_size` is the number of texts in one request. The engine divides them into steps."""

    name = "winnow"

    def __init__(self, folder: Path, device: str, batch_size: int, batch_tokens: int = 0) -> None:
        self.batch_size = batch_size
        self.computed = Computed()
        self._engine = _Process(EmbedEngine, _embed, settings(folder, device, batch_tokens))

    def embed(self, texts: Sequence[str], *, queries: bool) -> Vectors:
        """See `Embedder`."""
        vectors: Vectors
        vectors, self.computed.tokens, self.computed.texts = self._engine(texts, queries)
        return vectors

    def close(self) -> None:
        """See `Embedder`."""
        self._engine.close()


class WinnowReranker:
    """Sends all requests at once, as several clients would."""

    name = "winnow"

    def __init__(self, folder: Path, device: str, batch_size: int, batch_tokens: int = 0) -> None:
        self.batch_size = batch_size
        self.computed = Computed()
        self._engine = _Process(RerankEngine, _rerank, settings(folder, device, batch_tokens))

    def rerank(self, requests: Sequence[tuple[str, Sequence[str]]]) -> Scores:
        """See `Reranker`."""
        scores: Scores
        scores, self.computed.tokens, self.computed.texts = self._engine(requests)
        return scores

    def close(self) -> None:
        """See `Reranker`."""
        self._engine.close()


class _Process:
    """The engine's process. `call(engine, *arguments)` runs in it."""

    def __init__(self, kind: type[Any], call: Callable[..., Coroutine[Any, Any, Any]], wanted: EngineSettings) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind, call, wanted), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def __call__(self, *arguments: object) -> tuple[Any, int, int]:
        """The result of `call`, the number of tokens computed for it, and the number of texts."""
        self._connection.send(arguments)
        answer: tuple[Any, int, int] = self._receive()
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._connection.send(None)
        self._process.join()

    def _receive(self) -> Any:
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(
    connection: Connection, kind: type[Any], call: Callable[..., Coroutine[Any, Any, Any]], wanted: EngineSettings
) -> None:
    try:
        engine = kind.load(wanted)
    except Exception as error:
        connection.send(error)
        return
    computed = Computed()
    engine.on_batch = partial(_count, computed)
    with asyncio.Runner() as loop:
        loop.run(_start(engine))
        connection.send(None)
        while (arguments := connection.recv()) is not None:
            computed.tokens = computed.texts = 0
            try:
                connection.send((loop.run(call(engine, *arguments)), computed.tokens, computed.texts))
            except Exception as error:
                connection.send(error)
        loop.run(engine.drain())
        engine.close()


async def _start(engine: EmbedEngine | RerankEngine) -> None:
    engine.start()


def _count(computed: Computed, report: BatchReport) -> None:
    computed.tokens += report.tokens
    computed.texts += report.segments


async def _embed(engine: EmbedEngine, texts: Sequence[str], queries: bool) -> Vectors:
    kind = InputType.QUERY if queries else InputType.DOCUMENT
    result = await engine.embed(texts, input_type=kind, priority=Priority.INTERACTIVE)
    return np.stack([_sound(item).vector for item in result.items])


async def _rerank(engine: RerankEngine, requests: Sequence[tuple[str, Sequence[str]]]) -> Scores:
    results = await asyncio.gather(
        *(engine.rerank(query, documents, priority=Priority.INTERACTIVE) for query, documents in requests)
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
