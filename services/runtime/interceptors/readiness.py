"""Accepts calls only while the process is serving, and counts them, so that it can end after the last one."""

from __future__ import annotations

from contextlib import AbstractContextManager

from services.runtime.errors import NotReady
from services.runtime.interceptors.interceptor import HEALTH, REFLECTION, Context, Interceptor, Metadata
from services.runtime.lifecycle import Lifecycle, Phase


class ReadinessInterceptor(Interceptor):
    """UNAVAILABLE while loading, draining or broken, so that a retry goes to another replica."""

    exempt = (HEALTH, REFLECTION)

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def screen(self, method: str, metadata: Metadata) -> None:
        """Raises NotReady unless the process is serving."""
        if self._lifecycle.phase is not Phase.SERVING:
            self._lifecycle.refused += 1
            raise NotReady(self._lifecycle.phase.value)

    def call(self, method: str, context: Context) -> AbstractContextManager[None]:
        """The same, now that the request has been read; otherwise counts the call."""
        self.screen(method, ())
        return self._lifecycle.call()
