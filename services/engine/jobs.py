"""What the scheduler deals in: requests as jobs, batches of their items, and the limits of both."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.engine.errors import EngineError
from services.engine.types import Priority

P = TypeVar("P")  # what the model takes per item
R = TypeVar("R")  # what it gives


@dataclass(frozen=True, slots=True)
class Limits:
    """Of batches and of the queue. Sizes in tokens."""

    batch: int  # of one batch; only an item larger than this exceeds it, alone
    bulk: int  # of the batches opened by bulk requests, together: how long an interactive one may have to wait
    queue: int  # admitted and not yet dispatched: what memory allows
    mixed: int  # a batch opened by an interactive request is filled up to here with bulk work: nearly free tokens
    queue_s: float = math.inf  # what an interactive request may find before it in the queue
    depth: int = 1  # batches handed to the model at a time; 2 if it prepares one while it computes another
    bulk_patience_s: float = 1.0  # the least time without a batch after which bulk work goes first, once


@dataclass(eq=False, slots=True)
class Job(Generic[P, R]):
    """One admitted request. `shared` tokens are computed once per batch, however many of the items are in it."""

    payloads: Sequence[P]
    costs: Sequence[int]
    shared: int
    priority: Priority
    caller: str
    deadline: float | None
    context: object
    future: asyncio.Future[None]
    admitted: float
    remaining: int  # cost of the items not yet dispatched
    probe: bool = False  # computed whatever the estimate says of it
    next: int = 0  # index of the first of them
    unresolved: int = 0
    results: list[R | EngineError | None] = field(default_factory=list)
    started: float | None = None
    forward_s: float = 0.0

    @property
    def queued(self) -> int:
        """Tokens still to be dispatched."""
        return self.remaining + self.shared if self.next < len(self.costs) else 0

    @property
    def largest(self) -> int:
        """Tokens of the largest item still to be dispatched."""
        return max(self.costs[self.next :], default=0) + self.shared


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """A finished request: a result or an error for each item, in order."""

    results: list[R | EngineError]
    queue_s: float
    forward_s: float


@dataclass(eq=False, slots=True)
class Batch(Generic[P, R]):
    """Items of several jobs: `parts` are (job, first item, one past the last).

    `payloads`: what the model is to compute, in the order of the parts. They stay if a job is given up meanwhile, as
    the model's results are told apart by their places.
    """

    priority: Priority  # of the job that opened it
    cost: int = 0
    parts: list[tuple[Job[P, R], int, int]] = field(default_factory=list)
    payloads: list[P] = field(default_factory=list)
    started: float = 0.0

    def fill(self, job: Job[P, R], limit: int) -> None:
        """Takes the job's next items while they fit; an empty batch takes at least one."""
        start, room = job.next, limit - self.cost - job.shared
        while job.next < len(job.costs) and (job.costs[job.next] <= room or not (self.parts or job.next > start)):
            room -= job.costs[job.next]
            job.remaining -= job.costs[job.next]
            job.next += 1
        if job.next > start:
            self.cost = limit - room
            self.parts.append((job, start, job.next))
            self.payloads += job.payloads[start : job.next]

    @property
    def contexts(self) -> tuple[object, ...]:
        """The requests served."""
        return tuple(job.context for job, _, _ in self.parts)
