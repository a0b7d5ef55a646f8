"""Lets calls in only while the process serves, and counts them, so that it can end when they have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.runtime.errors import NotReady
from services.runtime.interceptors.around import Around, Context
from services.runtime.lifecycle import Lifecycle, Phase


class GateInterceptor(Around):
    """UNAVAILABLE while loading, draining or broken, so that a retry goes to another replica."""

    infrastructure = False

    def __init__(self, lifecycle: Lifecycle) -> None:
        super().__init__()
        self._lifecycle = lifecycle

    @asynccontextmanager
    async def call(self, method: str, context: Context) -> AsyncIterator[None]:
        """Refuses, or counts."""
        if self._lifecycle.phase is not Phase.SERVING:
            raise NotReady(self._lifecycle.phase.value)
        with self._lifecycle.call():
            yield
