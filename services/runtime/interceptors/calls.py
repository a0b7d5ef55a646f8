"""Bounds the calls in progress, from before the request is read until grpc has let go of the call."""

from __future__ import annotations

import asyncio
from collections import Counter

from services.runtime.errors import PoolSaturated
from services.runtime.interceptors.interceptor import HEALTH, REFLECTION, Interceptor, Metadata

_RETRY_SECONDS = 1.0

# A watch lasts as long as its client. Checks are not bounded: a probe must be answered whatever the load.
_CHECK = HEALTH + "Health/Check"
_MAX_WATCHES = 1000
_MAX_REFLECTIONS = 100


class CallsInterceptor(Interceptor):
    """RESOURCE_EXHAUSTED over `max_calls`. Watches of health and streams of reflection have limits of their own."""

    exempt = (_CHECK,)

    def __init__(self, max_calls: int) -> None:
        self._limits = {HEALTH: _MAX_WATCHES, REFLECTION: _MAX_REFLECTIONS, "": max_calls}
        self._calls: Counter[str] = Counter()

    def screen(self, method: str, metadata: Metadata) -> None:
        """Raises PoolSaturated, or counts the call until its task ends."""
        kind = next(prefix for prefix in self._limits if method.startswith(prefix))
        if self._calls[kind] >= self._limits[kind]:
            raise PoolSaturated(_RETRY_SECONDS, "This server has as many calls in progress as it accepts")
        task = asyncio.current_task()
        assert task is not None
        self._calls[kind] += 1
        task.add_done_callback(lambda _: self._calls.subtract((kind,)))
