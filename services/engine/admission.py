"""Whether a request is taken; if not, why, and when to come back. Decisions only: no clock and no queue of its own.

There are two reasons to refuse. `DeadlineTooShort`: its own work takes longer than it has, so that no replica could do
it in time. `Overloaded`: here too much waits before it; another replica may have room, and so may this one later.

What counts is what waits before a request, not how much it brings: a large one is taken on the terms of a small one.
From the first refusal until the queue is empty, its bound is what the least patient caller bears, for all. Otherwise
those with much time would fill it, and those with little would always be refused.
Simulated (2 and 4 times the capacity, deadlines of 1 s and 5 s) beside newest first, earliest deadline first, CoDel's
rule and a queue that each fills to its own deadline: as much goodput, fewer late answers, and the fairest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from services.engine.errors import DeadlineTooShort, EngineError, Overloaded
from services.engine.jobs import Limits
from services.engine.throughput import Throughput
from services.engine.types import Priority

# Of the queue, what bulk requests may fill together: the rest is kept for interactive ones. A bulk request that finds
# no other waiting may fill all of it.
_BULK_SHARE = 0.75
_QUEUE_SHARE = 0.4  # of the time that a request has to spare, what the queue before it may be estimated to take
# The queue under an overload. Shorter, it leaves the model without work now and then, however impatient a caller is,
# and hides from the autoscalers, whose target it is. Longer, it answers no more calls, and all of them later.
_LEAST_QUEUE_S, _MOST_QUEUE_S = 0.25, 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """What a request finds."""

    queued: Mapping[Priority, int]  # tokens that wait
    in_flight_s: float  # until the running batches are done

    def ahead(self, priority: Priority) -> int:
        """Tokens that go first. Aged bulk work gives way to deadlines, so none of it is before an interactive call."""
        return self.queued[priority] if priority is Priority.INTERACTIVE else sum(self.queued.values())


class Admission:
    """Bounds the queue in tokens, which is memory, and in seconds of work as measured, which is time."""

    def __init__(self, limits: Limits, throughput: Throughput) -> None:
        self._limits, self._throughput = limits, throughput
        self._queue_s = limits.queue_s  # of interactive requests, now

    def queue_is_empty(self) -> None:
        """No interactive request waits when a batch ends: there is no overload, or none any more."""
        self._queue_s = self._limits.queue_s

    def refusal(
        self, tokens: int, largest: int, priority: Priority, left: float | None, found: Found, *, probe: bool = False
    ) -> EngineError | None:
        """Why a request of `tokens`, its largest item of `largest`, is refused with `left` seconds to its deadline.

        A `probe` is taken whatever the estimate says of its own work.
        """
        own_s = self._throughput.seconds(tokens, largest)
        if left is not None and (left <= 0 or (own_s > left and not probe)):
            return DeadlineTooShort()
        if (excess := self._excess(tokens, priority, found)) > 0:
            return Overloaded(found.in_flight_s + self._throughput.seconds(excess))
        wait_s = self._throughput.seconds(found.ahead(priority) + tokens, largest) - own_s
        # Bulk work waits for as long as it has time.
        most_s = self._queue_s if priority is Priority.INTERACTIVE else math.inf
        if left is not None and not probe:
            most_s = min(most_s, _QUEUE_SHARE * (left - found.in_flight_s - own_s))
        if wait_s <= most_s:
            return None
        if priority is Priority.INTERACTIVE and most_s > 0:  # else what runs is to blame, not the queue
            self._queue_s = min(self._queue_s, max(_LEAST_QUEUE_S, min(most_s, _MOST_QUEUE_S)))
        return Overloaded(found.in_flight_s + wait_s - max(0.0, most_s))

    def late(self, ahead: int, tokens: int, largest: int, left: float) -> EngineError | None:
        """Why a request leaves the queue: behind `ahead` tokens it cannot be in time. None if it can."""
        done_s = self._throughput.seconds(ahead + tokens, largest)
        if done_s <= left:
            return None
        own_s = self._throughput.seconds(tokens, largest)
        return DeadlineTooShort() if own_s > left else Overloaded(done_s - own_s)

    def _excess(self, tokens: int, priority: Priority, found: Found) -> int:
        """Tokens too many."""
        excess = sum(found.queued.values()) + tokens - self._limits.queue
        if priority is Priority.BULK and (bulk := found.queued[priority]):
            excess = max(excess, bulk + tokens - int(_BULK_SHARE * self._limits.queue))
        return excess
