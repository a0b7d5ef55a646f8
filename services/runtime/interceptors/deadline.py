"""Refuses calls whose deadline has passed, before any work."""

from __future__ import annotations

from services.runtime.deadline import remaining
from services.runtime.errors import DeadlineTooShort
from services.runtime.interceptors.interceptor import HEALTH, REFLECTION, Context, Interceptor


class DeadlineInterceptor(Interceptor):
    """DEADLINE_EXCEEDED immediately if less than `least_seconds` are left. A call without a deadline is accepted."""

    exempt = (HEALTH, REFLECTION)

    def __init__(self, least_seconds: float = 0.001) -> None:
        self._least = least_seconds

    def admit(self, context: Context) -> None:
        """Raises DeadlineTooShort if too little time is left."""
        left = remaining(context)
        if left is not None and left < self._least:
            raise DeadlineTooShort
