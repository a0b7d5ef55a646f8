"""The state of a process, and the health service that reports it.

LOADING → SERVING → DRAINING, or BROKEN from any of them. Health names: "" and each served service follow the state;
"liveness" is SERVING until BROKEN, whatever the load, the state or the upstreams, so that a probe on it restarts
a process only if a restart helps.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from grpc_health.v1 import health_pb2

from services.runtime.grpc_workarounds import Health

LIVENESS = "liveness"
_Status = health_pb2.HealthCheckResponse


class Phase(enum.Enum):
    """State of a process."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    BROKEN = "broken"


class Lifecycle:
    """State of one process; lives on one event loop.

    `calls` counts the calls in progress, `refused` those that came while it was not serving. `stopping` is set when the
    process begins to end, for whatever reason: streaming handlers watch it so that they can finish accepted items and
    close.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self.services = tuple(services)
        self.phase = Phase.LOADING
        self.stopping = asyncio.Event()
        self.calls = self.refused = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.health = Health()

    async def announce(self) -> None:
        """Publishes the state through the health service."""
        status = _Status.SERVING if self.phase is Phase.SERVING else _Status.NOT_SERVING
        for name in ("", *self.services):
            await self.health.set(name, status)
        await self.health.set(LIVENESS, _Status.NOT_SERVING if self.phase is Phase.BROKEN else _Status.SERVING)

    async def ready(self) -> None:
        """Loading is done: calls are accepted. Does nothing if the process is ending already."""
        if self.phase is Phase.LOADING:
            self.phase = Phase.SERVING
            await self.announce()

    @contextmanager
    def call(self) -> Iterator[None]:
        """A context around each accepted call."""
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
        """Only a restart helps: the process ends with a status other than 0."""
        self.phase = Phase.BROKEN
        self.stopping.set()
