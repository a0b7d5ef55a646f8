"""EmbedStream: items by the caller's ids, answered in completion order, within a window of tokens in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.embed.options import Options, options_of
from services.embed.results import Embedded
from services.engine.types import ModelInfo
from services.runtime.errors import InvalidField, NotReady, Problem, ReplicaFull, to_status
from services.runtime.streams import fitting, in_completion_order, until
from services.runtime.validate import Check, oversized
from services.worker import wire
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2

MAX_ID_BYTES = 512

# What goes to the engine at a time: enough to be cheap, little enough that answers flow.
_CHUNK_ITEMS = 64
_CHUNKS_IN_WINDOW = 4
_MOST_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some items of one message; `first` is the position of the first of them in it."""

    items: Sequence[embed_pb2.EmbedStreamItem]
    first: int
    options: Options

    def text_field(self, index: int) -> str:
        """The path of an item's text in its message."""
        return f"items[{self.first + index}].text"


async def responses(
    requests: AsyncIterator[embed_pb2.EmbedStreamRequest],
    compute: Callable[[Chunk], Awaitable[Embedded]],
    *,
    info: ModelInfo,
    limits: common_pb2.Limits,
    window: int,
    stopping: asyncio.Event,
) -> AsyncGenerator[embed_pb2.EmbedStreamResponse, None]:
    """The results of each chunk that is done, in as many responses as they need.

    Raises Problem, after the answers to all that was taken on before.

    `window` is in estimated tokens. When `stopping` is set, reading ends and so does the stream, with NotReady: the
    caller sends elsewhere what has had no answer.
    """
    model = wire.identity(info)

    async def work(chunk: Chunk) -> list[embed_pb2.EmbedStreamResult]:
        long_ids = {i: p for i, item in enumerate(chunk.items) if (p := _long_id(chunk.first + i, item))}
        embedded = await _patiently(compute, chunk)
        return [
            embed_pb2.EmbedStreamResult(
                id=item.id,
                result=embed_pb2.EmbedResult(error=to_status(long_ids[index])) if index in long_ids else result,
            )
            for index, (item, result) in enumerate(zip(chunk.items, embedded.results, strict=True))
        ]

    chunks = _chunks(until(stopping, requests), info, limits, window // _CHUNKS_IN_WINDOW, stopping)
    async for results in in_completion_order(chunks, work, window):
        for part in fitting(results, limits.max_message_bytes):
            yield embed_pb2.EmbedStreamResponse(results=part, model=model)


async def _chunks(
    requests: AsyncIterator[embed_pb2.EmbedStreamRequest],
    info: ModelInfo,
    limits: common_pb2.Limits,
    most_tokens: int,
    stopping: asyncio.Event,
) -> AsyncIterator[tuple[Chunk, int]]:
    """The items of all messages, cut into chunks, with their estimated tokens."""
    options: Options | None = None
    async for request in requests:
        check = Check()
        check.count("items", request.items, 0, limits.max_items)
        if options is None:
            check.done()
            options = options_of(request.options, info, limits.max_text_bytes, Check("options."))
        elif request.HasField("options"):
            check.wrong("options", "only the first message of a stream may carry them")
        check.done()
        first, tokens = 0, 0
        for index, item in enumerate(request.items):
            cost = _estimate(item.text, options.max_tokens or info.max_tokens)
            if index > first and (index - first >= _CHUNK_ITEMS or tokens + cost > most_tokens):
                yield Chunk(request.items[first:index], first, options), tokens
                first, tokens = index, 0
            tokens += cost
        if first < len(request.items):
            yield Chunk(request.items[first:], first, options), tokens
    if stopping.is_set():
        raise NotReady("draining")


def _estimate(text: str, max_tokens: int) -> int:
    """Tokens of a text, before it is tokenised: three characters each, and some for a prompt."""
    return min(len(text) // 3 + 8, max_tokens)


def _long_id(index: int, item: embed_pb2.EmbedStreamItem) -> Problem | None:
    if oversized("id", item.id, MAX_ID_BYTES):
        return InvalidField(f"items[{index}].id", f"has more than {MAX_ID_BYTES} bytes of UTF-8")
    return None


async def _patiently(compute: Callable[[Chunk], Awaitable[Embedded]], chunk: Chunk) -> Embedded:
    """A stream waits where the queue is full: flow control slows its sender meanwhile."""
    while True:
        try:
            return await compute(chunk)
        except ReplicaFull as full:
            await asyncio.sleep(min(full.retry_after_s, _MOST_PATIENCE_SECONDS))
