import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.errors import NotReady
from services.runtime.streams import fitting, in_completion_order, unless, until
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2

T = TypeVar("T")


async def each(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


class Work:
    """Finishes when told to, and keeps the most cost that was in flight."""

    def __init__(self) -> None:
        self.running: dict[int, asyncio.Future[int]] = {}
        self.began: asyncio.Queue[int] = asyncio.Queue()

    async def __call__(self, chunk: int) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.running[chunk] = future
        self.began.put_nowait(chunk)
        try:
            return await future
        finally:
            del self.running[chunk]


async def test_results_come_as_they_finish() -> None:
    work = Work()
    async with aclosing(in_completion_order(each([(i, 1) for i in range(3)]), work, 10)) as results:
        first = asyncio.ensure_future(anext(results))
        for _ in range(3):
            await work.began.get()
        work.running[2].set_result(2)
        assert await first == 2
        work.running[0].set_result(0)
        assert await anext(results) == 0
        work.running[1].set_result(1)
        assert [result async for result in results] == [1]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(1, 12), max_size=30), st.integers(1, 10), st.randoms())
def test_cost_in_flight_stays_within_the_window(costs: list[int], window: int, random: Random) -> None:
    async def run() -> None:
        in_flight: list[int] = []

        async def work(index: int) -> int:
            in_flight.append(costs[index])
            assert sum(in_flight) <= window or len(in_flight) == 1
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
            in_flight.remove(costs[index])
            return index

        chunks = each([(index, cost) for index, cost in enumerate(costs)])
        assert sorted([index async for index in in_completion_order(chunks, work, window)]) == list(range(len(costs)))

    asyncio.run(run())


async def test_a_consumer_that_does_not_ask_stops_the_reading() -> None:
    read: list[int] = []

    async def chunks() -> AsyncIterator[tuple[int, int]]:
        for index in range(100):
            read.append(index)
            yield index, 1

    async def work(index: int) -> int:
        return index

    async with aclosing(in_completion_order(chunks(), work, 3)) as results:
        assert await anext(results) == 0
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(read) <= 5


async def test_a_failure_is_raised_after_what_was_in_flight() -> None:
    work = Work()

    async def chunks() -> AsyncIterator[tuple[int, int]]:
        yield 0, 1
        yield 1, 1
        raise ValueError("no more")

    seen = []
    with pytest.raises(ValueError, match="no more"):  # noqa: PT012 - what comes before it is the point
        async with aclosing(in_completion_order(chunks(), work, 10)) as results:
            following = asyncio.ensure_future(anext(results))
            await work.began.get()
            await work.began.get()
            work.running[1].set_result(1)
            seen.append(await following)
            work.running[0].set_result(0)
            async for result in results:
                seen.append(result)
    assert seen == [1, 0]


async def test_a_failed_part_ends_the_reading() -> None:
    gate = asyncio.Event()

    async def chunks() -> AsyncIterator[tuple[int, int]]:
        yield 0, 1
        await gate.wait()
        yield 1, 1

    async def work(index: int) -> int:
        raise KeyError(index)

    with pytest.raises(KeyError):
        async for _ in in_completion_order(chunks(), work, 10):
            pass


async def test_leaving_early_leaves_no_task_behind() -> None:
    work = Work()
    async with aclosing(in_completion_order(each([(i, 1) for i in range(5)]), work, 10)) as results:
        following = asyncio.ensure_future(anext(results))
        await work.began.get()
        work.running[0].set_result(0)
        await following
    assert not work.running
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_until_gives_everything_where_nothing_stops_it() -> None:
    assert [item async for item in until(asyncio.Event(), each(range(5)))] == list(range(5))


async def test_until_ends_while_it_waits() -> None:
    stopping, never = asyncio.Event(), asyncio.Event()

    async def items() -> AsyncIterator[int]:
        yield 1
        await never.wait()
        yield 2

    seen = []
    async for item in until(stopping, items()):
        seen.append(item)
        asyncio.get_running_loop().call_soon(stopping.set)
    assert seen == [1]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_until_tells_what_the_source_raises() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        async for _ in until(asyncio.Event(), items()):
            pass


async def test_what_a_stream_waits_for_ends_when_the_process_stops() -> None:
    stopping, began, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise KeyError

    assert await unless(stopping, answer()) == 7
    with pytest.raises(KeyError):
        await unless(stopping, fail())
    waiting = asyncio.create_task(unless(stopping, wait()))
    await began.wait()
    stopping.set()
    with pytest.raises(NotReady):
        await waiting
    assert ended.is_set()


@given(st.lists(st.integers(0, 20_000), max_size=40), st.integers(1 << 13, 1 << 16))
def test_results_are_cut_into_messages_that_fit(sizes: list[int], limit: int) -> None:
    results = [embed_pb2.EmbedStreamResult(id=str(n), result={"embedding": {"data": b"x" * size}})
               for n, size in enumerate(sizes)]  # fmt: skip
    parts = list(fitting(results, limit))
    assert [result.id for part in parts for result in part] == [result.id for result in results]
    model = common_pb2.ModelIdentity(name="n" * 1000, revision="r" * 100, fingerprint="f" * 64)
    for part in parts:
        assert len(part) <= 1 or embed_pb2.EmbedStreamResponse(results=part, model=model).ByteSize() <= limit
    if sum(sizes) + 100 * len(sizes) + 4096 <= limit:
        assert len(parts) == 1
