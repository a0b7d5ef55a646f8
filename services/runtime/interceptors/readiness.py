"""Accepts calls only while the process is serving, and counts them, so that it can end after the last one."""

from __future__ import annotations

from contextlib import AbstractContextManager

from services.runtime.errors import NotReady
from services.runtime.interceptors.interceptor import Context, Interceptor
from services.runtime.lifecycle import Lifecycle, Phase


class ReadinessInterceptor(Interceptor):
    """UNAVAILABLE while loading, draining or broken, so that a retry goes to another replica."""

    infrastructure = False

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def call(self, method: str, context: Context) -> AbstractContextManager[None]:
        """Raises NotReady unless the process is serving; otherwise counts the call."""
        if self._lifecycle.phase is not Phase.SERVING:
            raise NotReady(self._lifecycle.phase.value)
        return self._lifecycle.call()
