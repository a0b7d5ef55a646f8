"""Cutting a job into parts, and running them side by side."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models.concurrency import for_each, partition


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
