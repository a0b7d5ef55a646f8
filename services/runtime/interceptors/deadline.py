"""Refuses what is too late before it costs anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.runtime.deadline import remaining
from services.runtime.errors import DeadlineTooShort
from services.runtime.interceptors.around import Around, Context


class DeadlineInterceptor(Around):
    """DEADLINE_EXCEEDED at once where less than `least_seconds` are left. A call without a deadline passes."""

    infrastructure = False

    def __init__(self, least_seconds: float = 0.001) -> None:
        self._least = least_seconds

    @asynccontextmanager
    async def call(self, details: grpc.HandlerCallDetails, context: Context) -> AsyncIterator[None]:
        """Refuses, or stands aside."""
        left = remaining(context)
        if left is not None and left < self._least:
            raise DeadlineTooShort
        yield
