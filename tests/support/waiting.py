"""Waiting for facts, never for time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

R = TypeVar("R")


async def until(fact: Callable[[], object]) -> None:
    """Returns when `fact()` is true. The test's own time limit bounds it."""
    while not fact():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.001)


async def until_available(call: Callable[[], Awaitable[R]]) -> R:
    """The answer of the first call that is not UNAVAILABLE."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise


@contextmanager
def idle_clock() -> Iterator[Callable[[], float]]:
    """Tells for how many seconds the event loop has had nothing to run. What a slow machine computes does not count."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    select, idle = selector.select, 0.0

    def timed(timeout: float | None = None) -> object:
        nonlocal idle
        began = time.monotonic()
        ready = select(timeout)
        took = time.monotonic() - began
        idle += took if timeout is None else min(took, max(0.0, timeout))
        return ready

    selector.select = timed
    try:
        yield lambda: idle
    finally:
        selector.select = select
