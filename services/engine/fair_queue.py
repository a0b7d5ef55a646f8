"""A queue that shares the model between callers: who was served least goes first; first in, first out within a caller.

Each caller has a counter of the tokens that it was served. One that comes with nothing waiting starts no lower than
those that wait, so that a pause earns no credit; one that leaves keeps its debt while others wait. This is fair in
tokens to within one batch, whatever the sizes of the requests, and with one caller it is an ordinary queue. (Virtual
token counters: Sheng et al., Fairness in Serving Large Language Models, OSDI 2024.)
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

    jobs: deque[tuple[int, J]] = field(default_factory=deque)
    tokens: int = 0  # that wait
    served: int = 0
    known: bool = False  # has been served since it came

    @property
    def place(self) -> tuple[int, bool, int]:
        """Lowest first; of equals, those that have just come, then those whose requests have waited longer."""
        return self.served, self.known, self.jobs[0][0]


class FairQueue(Generic[J]):
    """The waiting requests of all callers. Iterates in the order in which they will be served."""

    def __init__(self) -> None:
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
            served, _, _, jobs = lines[0]
            _, job = jobs.popleft()
            yield job
            if jobs:
                heapq.heapreplace(lines, (served + job.queued, True, jobs[0][0], jobs))
            else:
                heapq.heappop(lines)

    def append(self, job: J) -> None:
        """Adds a request behind those of its caller."""
        floor = self._floor()
        # Of callers with nothing waiting, only a debt to those that wait is remembered.
        self._lines = {caller: line for caller, line in self._lines.items() if line.jobs or line.served > floor}
        line = self._lines.setdefault(job.caller, _Line())
        if not line.jobs:
            line.served = max(line.served, floor)
        line.jobs.append((next(self._numbers), job))
        line.tokens += job.queued
        self.tokens += job.queued

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
        line.served, line.known = line.served + tokens, True
        self.dropped(caller, tokens)

    def dropped(self, caller: str, tokens: int) -> None:
        """So many tokens of a caller no longer wait, because its request was cancelled or has failed."""
        if tokens:
            self._lines[caller].tokens -= tokens
            self.tokens -= tokens

    def ahead(self, caller: str, tokens: int) -> int:
        """Tokens that would be served before the last one of a new request of `tokens`."""
        own = self._lines.get(caller, _Line())
        reaches = max(own.served, 0 if own.jobs else self._floor()) + own.tokens + tokens
        others = (line for line in self._waiting() if line is not own)
        return own.tokens + sum(min(line.tokens, max(0, reaches - line.served)) for line in others)

    def room(self, caller: str, limit: int) -> int:
        """Tokens that the caller may add to a queue of `limit`: what is free, but at least its share of the queue.

        What others have queued beyond their shares does not delay it, so it need not be refused for that.
        """
        own = self._lines.get(caller, _Line())
        callers = 1 + sum(line.tokens > 0 for line in self._waiting() if line is not own)
        return max(limit - self.tokens, limit // callers - own.tokens)

    def _waiting(self) -> Iterator[_Line[J]]:
        return (line for line in self._lines.values() if line.jobs)

    def _next(self) -> _Line[J] | None:
        return min(self._waiting(), key=lambda line: line.place, default=None)

    def _floor(self) -> int:
        return min((line.served for line in self._waiting()), default=0)
