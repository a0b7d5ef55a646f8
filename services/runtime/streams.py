"""Long-lived streams: a bounded window of concurrent work, results in completion order, an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from services.runtime.errors import NotReady

C = TypeVar("C")
R = TypeVar("R")
M = TypeVar("M", bound=Message)

_END = object()

# Bytes of a response beside its results: a model's identity, and tag and length of each result.
_AROUND = 4096
_AROUND_EACH = 8


async def until(stopping: asyncio.Event, items: AsyncIterator[C]) -> AsyncIterator[C]:
    """The items, until `stopping` is set, even while the next one is awaited."""
    stop = asyncio.create_task(stopping.wait())

    async def step() -> C | object:
        return await anext(items, _END)

    try:
        while not stopping.is_set():
            following = asyncio.create_task(step())
            try:
                await asyncio.wait((following, stop), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.wait((following,))
            if following.cancelled():
                return
            item = following.result()
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        stop.cancel()


async def unless(stopping: asyncio.Event, work: Coroutine[Any, Any, R]) -> R:
    """The result of `work`; NotReady once `stopping` is set. For a stream that has not accepted anything yet."""
    tasks = working, stop = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise NotReady("draining")
        return working.result()
    finally:
        stop.cancel()
        working.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fitting(results: Sequence[M], max_message_bytes: int) -> Iterator[Sequence[M]]:
    """The results in their order, in parts that fit into one response each; a larger result is a part of its own."""
    first, size = 0, _AROUND
    for position, result in enumerate(results):
        more = result.ByteSize() + _AROUND_EACH
        if position > first and size + more > max_message_bytes:
            yield results[first:position]
            first, size = position, _AROUND
        size += more
    yield results[first:]


async def in_completion_order(
    chunks: AsyncIterator[tuple[C, int]], work: Callable[[C], Awaitable[R]], window: int
) -> AsyncGenerator[R, None]:
    """Results of `work` on each chunk, as they are ready.

    `chunks` yields (chunk, cost). The next one is started only if the costs in flight leave room in `window`; a larger
    one runs alone. A result is in flight until the consumer asks for the next, so a caller that does not read slows
    the reading of requests. An exception of `chunks` or `work` is raised after all results in flight.
    """
    open_tasks: set[asyncio.Task[R | None]] = set()
    finished: asyncio.Queue[asyncio.Task[R | None]] = asyncio.Queue()
    costs: dict[asyncio.Task[R | None], int] = {}
    freed = asyncio.Event()
    failure: BaseException | None = None

    def begin(task: asyncio.Task[R | None], cost: int) -> None:
        costs[task] = cost
        open_tasks.add(task)
        task.add_done_callback(finished.put_nowait)

    async def run(chunk: C) -> R:
        return await work(chunk)

    async def read() -> None:
        async for chunk, cost in chunks:
            while (busy := sum(costs.values())) and busy + cost > window:
                freed.clear()
                await freed.wait()
            begin(asyncio.create_task(run(chunk)), cost)

    reader = asyncio.create_task(read())
    begin(reader, 0)
    try:
        while open_tasks:
            task = await finished.get()
            open_tasks.discard(task)
            if task.cancelled():
                failure = failure or (None if task is reader else RuntimeError("a part of the stream was cancelled"))
            elif error := task.exception():
                failure = failure or error
                reader.cancel()
            elif task is not reader:
                yield task.result()  # type: ignore[misc]
            del costs[task]
            freed.set()
    finally:
        for task in open_tasks:
            task.cancel()
        await asyncio.gather(*open_tasks, return_exceptions=True)
    if failure is not None:
        raise failure
