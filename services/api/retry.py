"""Retry policy of streams: back off while workers are busy or unreachable; flow control slows the sender meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from services.runtime.errors import PoolSaturated, Problem, ReplicaFull, UpstreamUnavailable

T = TypeVar("T")

_FIRST_DELAY_S = 0.05
_MAX_DELAY_S = 5.0


class Outage:
    """How long one stream retries while an upstream is unreachable: `retry_for_s`, shared by all parts of the stream.

    Otherwise each part would wait for the same outage in turn.
    """

    def __init__(self, retry_for_s: float) -> None:
        self.retry_for_s = retry_for_s
        self.since: float | None = None
        self.given_up = False

    def end(self) -> None:
        """The upstream has answered."""
        self.since, self.given_up = None, False


async def retry_while_unavailable(call: Callable[[], Awaitable[T]], outage: Outage) -> T:
    """Calls until it succeeds: without end while the queue is full; while a server is unreachable, as `outage` says.

    The stream's own deadline bounds both. Raises every other Problem at once.
    """
    loop = asyncio.get_running_loop()
    delay_s = _FIRST_DELAY_S
    unreachable_since: float | None = None  # for this call: others may reach what it does not
    while True:
        try:
            reply = await call()
        except (PoolSaturated, ReplicaFull) as problem:
            outage.end()
            unreachable_since = None
            pause_s = min(max(delay_s, problem.retry_after_s), _MAX_DELAY_S)
        except UpstreamUnavailable as problem:
            now = loop.time()
            unreachable_since = now if unreachable_since is None else unreachable_since
            outage.since = now if outage.since is None else outage.since
            if outage.given_up or now + delay_s > min(unreachable_since, outage.since) + outage.retry_for_s:
                outage.given_up = True
                raise
            pause_s = min(max(delay_s, problem.retry_after_s), _MAX_DELAY_S, outage.retry_for_s)
        else:
            outage.end()
            return reply
        await asyncio.sleep(pause_s)
        delay_s = min(2 * delay_s, _MAX_DELAY_S)


def is_for_item(problem: Problem) -> bool:
    """True if the problem concerns some items only, so that the stream can go on."""
    return problem.code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
    }
