"""The caller's deadline, as time left and as a time of the event loop's clock."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc


def remaining(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """Seconds until the caller gives up (may be negative); None without a deadline."""
    left = context.time_remaining()
    return None if left is None else float(left)


def absolute(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """The same as a time of the running loop's clock (`loop.time()`)."""
    left = remaining(context)
    return None if left is None else asyncio.get_running_loop().time() + left
