"""A circuit breaker: after some consecutive failures nothing is tried for a while, then one probe decides."""

import time
from collections.abc import Callable
from enum import Enum


class State(Enum):
    """The state of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Closed: everything is tried. Open: nothing is. Half-open: one attempt is under way, and its outcome decides.

    Not thread-safe; it lives on one event loop. `clock` is in seconds.
    """

    def __init__(self, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._probe_until: float | None = None

    @property
    def state(self) -> State:
        """The state now."""
        if self._opened_at is None:
            return State.CLOSED
        return State.OPEN if self._probe_until is None else State.HALF_OPEN

    def allow(self) -> bool:
        """True if the caller may try. It must then report success or failure.

        A probe that is never reported (its caller was cancelled) counts as lost after another open period.
        """
        if self._opened_at is None:
            return True
        now = self._clock()
        if self._probe_until is not None:
            if now < self._probe_until:
                return False
        elif now < self._opened_at + self._open_s:
            return False
        self._probe_until = now + self._open_s
        return True

    def success(self) -> None:
        """Reports that an attempt worked."""
        self._failures = 0
        self._opened_at = self._probe_until = None

    def failure(self) -> None:
        """Reports that an attempt failed."""
        self._failures += 1
        if self._opened_at is not None or self._failures >= self._limit:
            self._opened_at, self._probe_until = self._clock(), None
