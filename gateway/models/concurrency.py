"""Concurrent parts of one job."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def for_each(parts: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Runs `work` for every part, at most `at_once` at a time. The first failure cancels the others and is raised."""
    gate = asyncio.Semaphore(at_once)

    async def one(part: T) -> None:
        async with gate:
            await work(part)

    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(one(part))
    except BaseExceptionGroup as failed:
        raise _first(failed) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def partition(positions: Sequence[int], texts: Sequence[str], max_items: int, max_bytes: int) -> list[list[int]]:
    """Splits positions into consecutive parts within both limits; a text over the limit is a part of its own.

    Bytes are estimated by characters, which is close enough to share work evenly.
    """
    parts: list[list[int]] = []
    size = 0
    for position in positions:
        length = len(texts[position])
        if not parts or len(parts[-1]) >= max_items or size + length > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(position)
        size += length
    return parts
