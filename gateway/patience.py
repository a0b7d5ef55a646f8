"""How a stream bears with workers that are full or away: it waits, since its sender is slowed, never refused."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from services.runtime.errors import PoolSaturated, Problem, UpstreamUnavailable

T = TypeVar("T")

_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 5.0


class Outage:
    """How long one stream bears with an upstream that is away: for `longest_s`, which all its parts share.

    Otherwise each part would bear with the same outage after the one before it.
    """

    def __init__(self, longest_s: float) -> None:
        self.longest_s = longest_s
        self.since: float | None = None
        self.given_up = False

    def end(self) -> None:
        """The upstream has answered."""
        self.since, self.given_up = None, False


async def patiently(call: Callable[[], Awaitable[T]], outage: Outage) -> T:
    """What `call` gives. While the pool is full it is tried again; while it is away, as long as `outage` says.

    The stream's own deadline bounds both. Raises every other Problem at once.
    """
    loop = asyncio.get_running_loop()
    delay_s = _FIRST_DELAY_S
    away_since: float | None = None  # for this call: others may reach what it does not
    while True:
        try:
            reply = await call()
        except PoolSaturated as problem:
            outage.end()
            away_since = None
            pause_s = min(max(delay_s, problem.retry_after_s), _LONGEST_DELAY_S)
        except UpstreamUnavailable as problem:
            now = loop.time()
            away_since = now if away_since is None else away_since
            outage.since = now if outage.since is None else outage.since
            if outage.given_up or now + delay_s > min(away_since, outage.since) + outage.longest_s:
                outage.given_up = True
                raise
            pause_s = min(max(delay_s, problem.retry_after_s), _LONGEST_DELAY_S, outage.longest_s)
        else:
            outage.end()
            return reply
        await asyncio.sleep(pause_s)
        delay_s = min(2 * delay_s, _LONGEST_DELAY_S)


def is_for_item(problem: Problem) -> bool:
    """True for a failure of one group of items that the rest of a stream may outlive."""
    return problem.code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
    }
