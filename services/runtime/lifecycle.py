"""What state a process is in, and the health service that says so.

LOADING → SERVING → DRAINING, or BROKEN from any of them. Health names: "" and each served service follow the state;
"liveness" is SERVING until BROKEN, whatever the load, the state or the neighbours, so that a probe on it restarts
a process only where a restart helps.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

LIVENESS = "liveness"
_Status = health_pb2.HealthCheckResponse


class Phase(enum.Enum):
    """State of a process."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    BROKEN = "broken"


class Health(health_aio.HealthServicer):  # type: ignore[misc]  # the package has no stubs
    """The health service, with watches that can be ended: by themselves they would hold up every server's stop."""

    def __init__(self) -> None:
        super().__init__()
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Ends all watches with UNAVAILABLE."""
        self._closed.set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """The state, and each change of it."""
        watching = asyncio.create_task(super().Watch(request, context))
        closing = asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait((watching, closing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            closing.cancel()
            await asyncio.gather(watching, closing, return_exceptions=True)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")


class Lifecycle:
    """State of one process; lives on one event loop.

    `calls` counts the calls in progress. `stopping` is set when the process begins to end, for whatever reason:
    handlers of endless streams wait for it beside their caller, so that they can finish what they took and part.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self.services = tuple(services)
        self.phase = Phase.LOADING
        self.stopping = asyncio.Event()
        self.calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.health = Health()

    async def announce(self) -> None:
        """Writes the state into the health service."""
        status = _Status.SERVING if self.phase is Phase.SERVING else _Status.NOT_SERVING
        for name in ("", *self.services):
            await self.health.set(name, status)
        await self.health.set(LIVENESS, _Status.NOT_SERVING if self.phase is Phase.BROKEN else _Status.SERVING)

    async def ready(self) -> None:
        """Loading is done: calls are let in. Says nothing where the process is ending already."""
        if self.phase is Phase.LOADING:
            self.phase = Phase.SERVING
            await self.announce()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around each call that was let in."""
        self.calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.calls -= 1
            if not self.calls:
                self._idle.set()

    async def idle(self) -> None:
        """Returns when no call is in progress."""
        await self._idle.wait()

    def stop(self) -> None:
        """Begins the end: new calls are refused, `stopping` is set. Safe to call twice, and in a signal handler."""
        if self.phase is not Phase.BROKEN:
            self.phase = Phase.DRAINING
        self.stopping.set()

    def fail(self) -> None:
        """Something broke that only a restart mends: the process ends with a status other than 0."""
        self.phase = Phase.BROKEN
        self.stopping.set()
