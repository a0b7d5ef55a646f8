"""Decides what the model computes next. Plain asyncio: no torch, no numpy, no timers.

A request waits in its lane as a row of items. Whenever the model is free the next batch is filled up to a budget of
tokens: interactive before bulk, first in first out within a lane, a large request over as many batches as it takes.
All methods run on the event loop, so nothing is locked.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.engine.errors import DeadlineTooShort, Draining, EngineError, ModelBroken, Overloaded
from services.engine.throughput import Throughput
from services.engine.types import Lane, QueueStats

P = TypeVar("P")  # what the model takes per item
R = TypeVar("R")  # what it gives

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in tokens."""

    batch: int  # of one batch; only an item larger than this exceeds it, alone
    bulk: int  # of a batch opened by a bulk request: how long an interactive one may have to wait
    queue: int  # admitted and not yet dispatched
    mixed: int  # a batch opened by an interactive request is filled up to here with bulk work: nearly free tokens
    depth: int = 1  # batches handed to the model at a time; 2 where it prepares one while it computes another
    bulk_patience_s: float = 1.0  # after so long without service the bulk lane goes first, once


@dataclass(eq=False, slots=True)
class Job(Generic[P, R]):
    """One admitted request. `shared` tokens are computed once per batch, however many of the items are in it."""

    payloads: Sequence[P]
    costs: Sequence[int]
    shared: int
    lane: Lane
    deadline: float | None
    context: object
    future: asyncio.Future[None]
    admitted: float
    remaining: int  # cost of the items not yet dispatched
    next: int = 0  # index of the first of them
    unresolved: int = 0
    results: list[R | EngineError | None] = field(default_factory=list)
    started: float | None = None
    forward_s: float = 0.0

    @property
    def queued(self) -> int:
        """Tokens still to be dispatched."""
        return self.remaining + self.shared if self.next < len(self.costs) else 0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """A finished request: a result or an error for each item, in order."""

    results: list[R | EngineError]
    queue_s: float
    forward_s: float


@dataclass(eq=False, slots=True)
class Batch(Generic[P, R]):
    """Items of several jobs: `parts` are (job, first item, one past the last)."""

    lane: Lane  # of the job that opened it
    cost: int = 0
    parts: list[tuple[Job[P, R], int, int]] = field(default_factory=list)
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

    @property
    def payloads(self) -> list[P]:
        """What the model is to compute, in order."""
        return [payload for job, start, stop in self.parts for payload in job.payloads[start:stop]]

    @property
    def contexts(self) -> tuple[object, ...]:
        """The requests served."""
        return tuple(job.context for job, _, _ in self.parts)


Compute = Callable[[Batch[P, R]], Awaitable[Sequence[R | EngineError]]]
"""Runs a batch: one result or error per payload. What it raises fails every job in the batch."""


class Scheduler(Generic[P, R]):
    """Admission, order, deadlines and cancellation in front of `compute`."""

    def __init__(
        self, compute: Compute[P, R], limits: Limits, throughput: Throughput, clock: Clock = time.monotonic
    ) -> None:
        self._compute, self._limits, self._throughput, self._clock = compute, limits, throughput, clock
        self._lanes: dict[Lane, deque[Job[P, R]]] = {Lane.INTERACTIVE: deque(), Lane.BULK: deque()}
        self._queued = dict.fromkeys(Lane, 0)  # tokens
        self._live: set[Job[P, R]] = set()
        self._running: dict[asyncio.Task[None], Batch[P, R]] = {}
        self._refusal: EngineError | None = None
        self._bulk_served = self._last_end = clock()
        self._pumping = False

    def admissible(self, tokens: int, deadline: float | None) -> None:
        """Raises unless a request of at least `tokens` could be admitted now; cheap, to be asked before tokenising."""
        if self._refusal:
            raise self._refusal
        if deadline is not None and deadline <= self._clock():
            raise DeadlineTooShort
        excess = sum(self._queued.values()) + tokens - self._limits.queue
        if excess > 0:
            raise Overloaded(self._in_flight_s() + self._throughput.seconds(excess))

    async def submit(
        self,
        payloads: Sequence[P],
        costs: Sequence[int],
        *,
        shared: int = 0,
        lane: Lane,
        deadline: float | None = None,
        context: object = None,
    ) -> Outcome[R]:
        """Runs all items. Cancelling the caller drops what was not dispatched.

        Raises InvalidInput, Overloaded, DeadlineTooShort, Draining or ModelBroken for the request as a whole.
        """
        if not payloads:
            return Outcome([], 0.0, 0.0)
        total = sum(costs)
        self.admissible(total + shared, deadline)
        ahead = self._queued[lane] if lane is Lane.INTERACTIVE else sum(self._queued.values())
        wait = self._in_flight_s() + self._throughput.seconds(ahead + total + shared)
        if deadline is not None and self._clock() + wait > deadline:
            self._throughput.refused()
            raise DeadlineTooShort
        job: Job[P, R] = Job(
            payloads=payloads,
            costs=costs,
            shared=shared,
            lane=lane,
            deadline=deadline,
            context=context,
            future=asyncio.get_running_loop().create_future(),
            admitted=self._clock(),
            remaining=total,
            unresolved=len(payloads),
            results=[None] * len(payloads),
        )
        if lane is Lane.BULK and not self._queued[lane]:
            self._bulk_served = job.admitted
        self._lanes[lane].append(job)
        self._queued[lane] += job.queued
        self._live.add(job)
        self._wake()
        try:
            await job.future
        finally:
            self._forget(job)
        assert job.started is not None
        results = [result for result in job.results if result is not None]
        return Outcome(results, job.started - job.admitted, job.forward_s)

    def stats(self) -> QueueStats:
        """What waits, what runs, how fast."""
        return QueueStats(
            queued_tokens=sum(self._queued.values()),
            inflight_tokens=sum(batch.cost for batch in self._running.values()),
            tokens_per_second=self._throughput.rate(),
            queue_limit_tokens=self._limits.queue,
        )

    async def drain(self) -> None:
        """Refuses new requests and returns when the admitted ones are done."""
        self._refusal = self._refusal or Draining()
        while waiting := [job.future for job in self._live if not job.future.done()] + list(self._running):
            await asyncio.wait(waiting)

    def abort(self, reason: EngineError) -> None:
        """Refuses new requests with `reason` and fails the admitted ones."""
        self._refusal = reason
        for job in list(self._live):
            self._fail(job, reason)

    def close(self) -> None:
        """Fails what is not done."""
        self.abort(self._refusal or Draining())

    def _wake(self) -> None:
        """Pumps on the loop's next turn, so that requests arriving in one turn share a batch."""
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        while len(self._running) < self._limits.depth and (batch := self._take()):
            batch.started = self._clock()
            for job, _, _ in batch.parts:
                job.started = job.started or batch.started
            self._running[asyncio.ensure_future(self._run(batch))] = batch

    def _take(self) -> Batch[P, R] | None:
        now = self._clock()
        order = [Lane.INTERACTIVE, Lane.BULK]
        if now - self._bulk_served > self._limits.bulk_patience_s:
            order.reverse()
        batch: Batch[P, R] | None = None
        for lane in order:
            limit = self._limits.batch
            if lane is Lane.BULK:
                limit = self._limits.mixed if batch else self._limits.bulk
            jobs = self._lanes[lane]
            while jobs:
                job = jobs[0]
                if job.future.done():  # cancelled or failed
                    self._forget(job)
                    jobs.popleft()
                    continue
                if job.deadline is not None and now + self._throughput.seconds(job.queued) > job.deadline:
                    self._throughput.refused()
                    self._fail(job, DeadlineTooShort())
                    continue
                batch = batch or Batch(lane)
                before = job.queued
                batch.fill(job, limit)
                self._queued[lane] -= before - job.queued
                if lane is Lane.BULK and job.queued < before:
                    self._bulk_served = now
                if job.queued:
                    break
                jobs.popleft()
        return batch

    async def _run(self, batch: Batch[P, R]) -> None:
        task = asyncio.current_task()
        assert task is not None
        failure: BaseException | None = None
        results: Sequence[R | EngineError] = ()
        try:
            results = await self._compute(batch)
        except Exception as error:
            failure = error
        end = self._clock()
        del self._running[task]
        if failure is None:
            # Batches overlap where depth > 1; the model's own time runs from the end of the one before.
            self._throughput.measured(batch.cost, end - max(batch.started, self._last_end))
            self._last_end = end
        position = 0
        for job, start, stop in batch.parts:
            if failure is not None:
                self._fail(job, failure)
                continue
            job.forward_s += end - batch.started
            job.results[start:stop] = results[position : position + stop - start]
            position += stop - start
            job.unresolved -= stop - start
            if not job.unresolved and not job.future.done():
                job.future.set_result(None)
                self._live.discard(job)
        if isinstance(failure, ModelBroken):
            self.abort(failure)
        self._wake()

    def _fail(self, job: Job[P, R], error: BaseException) -> None:
        if not job.future.done():
            job.future.set_exception(error)
        self._forget(job)

    def _forget(self, job: Job[P, R]) -> None:
        """Drops what was not dispatched. The lane loses its empty shell when that comes to the front."""
        self._live.discard(job)
        self._queued[job.lane] -= job.queued
        job.payloads, job.remaining, job.next = (), 0, len(job.costs)

    def _in_flight_s(self) -> float:
        """Estimated time until the running batches are done."""
        cost = sum(batch.cost for batch in self._running.values())
        if not cost:
            return 0.0
        oldest = min(batch.started for batch in self._running.values())
        return max(0.0, self._throughput.seconds(cost) - (self._clock() - oldest))
