"""Concurrent parts of one job."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from services.runtime.errors import PoolSaturated

T = TypeVar("T")

# How long a part waits before it is sent again: as long as the pool says, within these.
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.05, 1.0


class Begun:
    """Whether a job has been begun: a part of it is under way, or was answered.

    The parts of a large job fill the workers' queues, so that others of them are refused. They are sent again until
    the caller's deadline, and what was computed is not thrown away. If all parts are refused, the pool is full of
    others' work, and the job is refused.
    """

    def __init__(self) -> None:
        self._under_way, self._answered = 0, False

    async def send(self, part: Callable[[], Awaitable[None]]) -> None:
        """Runs a part. Raises PoolSaturated if the job has not been begun."""
        while True:
            self._under_way += 1
            try:
                await part()
            except PoolSaturated as problem:
                if self._under_way == 1 and not self._answered:
                    raise
                pause_s = min(max(_LEAST_PAUSE_S, problem.retry_after_s), _MOST_PAUSE_S)
            else:
                self._answered = True
                return
            finally:
                self._under_way -= 1
            await asyncio.sleep(pause_s)


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
