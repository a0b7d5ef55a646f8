"""A queue that shares the model between callers: who was served least goes first; first in, first out within a caller.

Each caller has a counter of the tokens that it was served. The queue has a level, that of the caller that it serves. A
caller that comes with nothing waiting starts where it was, but no further below the level than a credit: who uses less
than its share is served at once, and a pause of any length earns no more than that. So callers that wait are served
equally, to within the credit and one batch, whatever the sizes of their requests; one caller alone has an ordinary
queue. (Start-time fair queueing; also the virtual token counters of Sheng et al., OSDI 2024.)
"""

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the queue must know of a request."""

    @property
    def caller(self) -> str:
        """Who sent it; "": a caller without a name."""

    @property
    def queued(self) -> int:
        """Its tokens that still wait."""


J = TypeVar("J", bound=Waiting)


@dataclass(eq=False, slots=True)
class _Line(Generic[J]):
    """The requests of one caller, each with its number in the order of arrival."""

    served: int
    tokens: int = 0  # that wait
    jobs: deque[tuple[int, J]] = field(default_factory=deque)

    @property
    def place(self) -> tuple[int, int]:
        """Lowest first; of equals, whose request has waited longer."""
        return self.served, self.jobs[0][0]


class FairQueue(Generic[J]):
    """The waiting requests of all callers. Iterates in the order in which they will be served.

    `credit`: tokens by which a caller that was served less than others may be ahead of them.
    """

    def __init__(self, credit: int = 0) -> None:
        self._credit, self._level = credit, 0
        self._lines: dict[str, _Line[J]] = {}
        self._numbers = count()
        self.tokens = 0
        """Tokens that wait."""

    def __len__(self) -> int:
        return sum(len(line.jobs) for line in self._lines.values())

    def __iter__(self) -> Iterator[J]:
        lines = [(*line.place, deque(line.jobs)) for line in self._waiting()]
        heapq.heapify(lines)
        while lines:
            served, _, jobs = lines[0]
            _, job = jobs.popleft()
            yield job
            if jobs:
                heapq.heapreplace(lines, (served + job.queued, jobs[0][0], jobs))
            else:
                heapq.heappop(lines)

    def append(self, job: J) -> None:
        """Adds a request behind those of its caller."""
        least = self._least()
        contended = any(line.jobs for line in self._lines.values())
        # A caller with nothing waiting is remembered as long as it matters.
        self._lines = {
            name: line for name, line in self._lines.items() if line.jobs or (contended and line.served > least)
        }
        line = self._lines.setdefault(job.caller, _Line(least))
        if not line.jobs:
            line.served = max(line.served, least)
        line.jobs.append((next(self._numbers), job))
        line.tokens += job.queued
        self.tokens += job.queued

    def waits(self, caller: str) -> bool:
        """Whether a request of the caller waits."""
        return caller in self._lines and bool(self._lines[caller].jobs)

    def front(self) -> J | None:
        """The request that is served next."""
        line = self._next()
        return line.jobs[0][1] if line else None

    def popleft(self) -> J:
        """Removes the front. IndexError if the queue is empty."""
        line = self._next()
        if line is None:
            raise IndexError("the queue is empty")
        return line.jobs.popleft()[1]

    def served(self, caller: str, tokens: int) -> None:
        """So many tokens of a caller's request go to the model. Another caller may be in front now."""
        line = self._lines[caller]
        self._level = max(self._level, line.served)
        line.served += tokens
        self.dropped(caller, tokens)

    def dropped(self, caller: str, tokens: int) -> None:
        """So many tokens of a caller no longer wait, because its request was cancelled or has failed."""
        if tokens:
            self._lines[caller].tokens -= tokens
            self.tokens -= tokens

    def ahead(self, caller: str, tokens: int) -> int:
        """Tokens that would be served before the last one of a new request of `tokens`."""
        own = self._lines.get(caller, _Line(self._least()))
        start = own.served if own.jobs else max(own.served, self._least())
        reaches = start + own.tokens + tokens
        others = (line for line in self._waiting() if line is not own)
        return own.tokens + sum(min(line.tokens, max(0, reaches - line.served)) for line in others)

    def _waiting(self) -> Iterator[_Line[J]]:
        return (line for line in self._lines.values() if line.jobs)

    def _next(self) -> _Line[J] | None:
        return min(self._waiting(), key=lambda line: line.place, default=None)

    def _least(self) -> int:
        """Where a caller starts that was not served for long."""
        return self._level - self._credit
