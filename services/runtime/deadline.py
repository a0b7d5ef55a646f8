"""The caller's deadline, in the forms that the rest needs."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc


def remaining(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """Seconds until the caller gives up (may be negative); None where it waits for ever."""
    left = context.time_remaining()
    return None if left is None else float(left)


def absolute(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """The same as a time of the running loop's clock (`loop.time()`)."""
    left = remaining(context)
    return None if left is None else asyncio.get_running_loop().time() + left
