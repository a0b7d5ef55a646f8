"""How a stream bears with workers that are full or away: it waits, since its sender is slowed, never refused."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from services.runtime.errors import PoolSaturated, Problem, UpstreamUnavailable

T = TypeVar("T")

_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 5.0


async def patiently(call: Callable[[], Awaitable[T]], outage_s: float) -> T:
    """What `call` gives. While the pool is full it is tried again; while it cannot be reached, for `outage_s`.

    The stream's own deadline bounds both. Raises every other Problem at once.
    """
    loop = asyncio.get_running_loop()
    delay_s = _FIRST_DELAY_S
    away_since: float | None = None
    while True:
        try:
            return await call()
        except PoolSaturated as problem:
            away_since = None
            pause_s = min(max(delay_s, problem.retry_after_s), _LONGEST_DELAY_S)
        except UpstreamUnavailable as problem:
            away_since = loop.time() if away_since is None else away_since
            if loop.time() + delay_s > away_since + outage_s:
                raise
            pause_s = min(max(delay_s, problem.retry_after_s), _LONGEST_DELAY_S, outage_s)
        await asyncio.sleep(pause_s)
        delay_s = min(2 * delay_s, _LONGEST_DELAY_S)


def is_for_item(problem: Problem) -> bool:
    """True for a failure of one group of items that the rest of a stream may outlive."""
    return problem.code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
    }
