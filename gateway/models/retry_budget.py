"""How many calls may be sent a second time, so that retries and hedges never multiply an overload."""

import math
from collections import deque

_WINDOW_S = 10.0
# Time in which an empty reserve is full again: it is for bursts, and adds little to a lasting overload.
_REFILL_S = 100.0
_KEPT = 200
_RENEWED_EVERY = 20


class RetryBudget:
    """A share of the calls of the last ten seconds, and a reserve that covers a burst and is refilled slowly.

    The reserve lets a pool with little traffic retry, and covers the calls that are in flight on a connection that is
    lost.
    """

    def __init__(self, share: float, reserve: float, now: float) -> None:
        self._share, self._most, self._reserve = share, reserve, reserve
        self._earned = 0.0
        self._at = now

    def earn(self, now: float) -> None:
        """A call has been made."""
        self._pass(now)
        self._earned += self._share

    def spend(self, now: float) -> bool:
        """True if a call may be sent once more."""
        self._pass(now)
        if self._earned >= 1:
            self._earned -= 1
        elif self._reserve >= 1:
            self._reserve -= 1
        else:
            return False
        return True

    def _pass(self, now: float) -> None:
        passed = now - self._at
        self._at = now
        self._earned *= math.exp(-passed / _WINDOW_S)
        self._reserve = min(self._most, self._reserve + self._most * passed / _REFILL_S)


class Percentile95:
    """The 95th percentile of the latest values."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_KEPT)
        self._added = 0
        self.value: float | None = None
        """None until there are enough values."""

    def add(self, value: float) -> None:
        """Takes a value into account."""
        self._values.append(value)
        self._added += 1
        if self._added % _RENEWED_EVERY == 0:
            ordered = sorted(self._values)
            self.value = ordered[len(ordered) * 95 // 100]
