"""Waiting for facts, never for time."""

import asyncio
from collections.abc import Awaitable, Callable
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
