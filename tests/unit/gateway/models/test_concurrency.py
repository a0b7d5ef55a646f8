"""Cutting a job into parts, and running them side by side."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models.concurrency import Begun, for_each, partition
from services.runtime.errors import PoolSaturated


@given(st.lists(st.integers(0, 30)), st.integers(1, 5), st.integers(1, 50))
def test_partition_keeps_order_and_limits(lengths: list[int], max_items: int, max_bytes: int) -> None:
    texts = ["x" * length for length in lengths]
    positions = list(range(len(texts)))
    parts = partition(positions, texts, max_items, max_bytes)
    assert [position for part in parts for position in part] == positions
    for part in parts:
        assert 1 <= len(part) <= max_items
        assert len(part) == 1 or sum(lengths[position] for position in part) <= max_bytes


async def test_each_bounds_what_runs_at_once() -> None:
    running = most = 0

    async def work(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await for_each(range(20), work, at_once=3)
    assert most == 3


async def test_the_first_failure_ends_the_others() -> None:
    ended = []

    async def work(part: int) -> None:
        if part == 1:
            raise ValueError("one")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(part)

    with pytest.raises(ValueError, match="one"):
        await for_each(range(3), work, at_once=3)
    assert sorted(ended) == [0, 2]


async def test_a_part_that_the_job_itself_keeps_out_is_sent_again() -> None:
    """A queue with room for one part."""
    full, done = False, []
    begun = Begun()

    async def work(part: int) -> None:
        nonlocal full
        if full:
            raise PoolSaturated(0.01)
        full = True
        await asyncio.sleep(0)
        full = False
        done.append(part)

    await for_each(range(5), lambda part: begun.send(lambda: work(part)), at_once=3)
    assert sorted(done) == [0, 1, 2, 3, 4]


async def test_a_job_of_which_every_part_is_refused_is_refused() -> None:
    asked: list[int] = []
    begun = Begun()

    async def work(part: int) -> None:
        asked.append(part)
        await asyncio.sleep(0)
        raise PoolSaturated(60.0)

    with pytest.raises(PoolSaturated):
        await for_each(range(3), lambda part: begun.send(lambda: work(part)), at_once=3)
    assert asked == [0, 1, 2]


async def test_a_job_that_was_begun_waits_for_room() -> None:
    refusals = 3
    begun = Begun()

    async def work(part: int) -> None:
        nonlocal refusals
        if part and refusals:
            refusals -= 1
            raise PoolSaturated(0.01)

    await for_each(range(2), lambda part: begun.send(lambda: work(part)), at_once=1)
    assert refusals == 0
