"""Decides what the model computes next. Plain asyncio: no torch, no numpy, no timers.

A request waits in the queue of its priority as a row of items. Whenever the model is free, the next batch is filled up
to a budget of tokens: interactive before bulk, shared fairly between callers within a priority, first in first out
within a caller, a large request over as many batches as it takes.
A batch cannot be interrupted, so what an interactive request finds in its way is at most one bulk batch. Bulk work
ages: it goes first when it has been without a batch of its own for long enough, but never twice in a row while
interactive work waits.
All methods run on the event loop, so nothing is locked.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic

from services.engine.admission import Admission, Found
from services.engine.errors import Draining, EngineError, ModelBroken
from services.engine.fair_queue import FairQueue
from services.engine.jobs import Batch, Job, Limits, Outcome, P, R
from services.engine.throughput import Throughput
from services.engine.types import Priority, QueueStats

Clock = Callable[[], float]

# Aged bulk work gives way to interactive requests that would miss their deadlines for it, until it has waited so many
# times its turn.
_DEFERRED_TURNS = 10
_CREDIT_S = 2.0  # of work, by which a caller that uses less than its share may be ahead of others
# For this long after a caller with nothing waiting has met the work of another, batches are short: what the first one
# waits for is the batch that runs. They are not so small that they cost much more for each token: some 5 % more than
# twice as large ones, and as much for what the items of a request share and each batch computes once more.
_CONTENDED_S = 10.0
_SHORT_S, _SHORT_TOKENS, _SHORT_SHARED = 0.05, 128, 8
_PROBE_S = 5.0  # without a batch, after which the estimate is not trusted to refuse one request
_CERTAINTY = 0.8  # of the time to a deadline, what a batch may be estimated to take


Compute = Callable[[Batch[P, R]], Awaitable[Sequence[R | EngineError]]]
"""Runs a batch: one result or error per payload. What it raises fails every job in the batch."""


class Scheduler(Generic[P, R]):
    """Order, deadlines and cancellation in front of `compute`."""

    def __init__(
        self, compute: Compute[P, R], limits: Limits, throughput: Throughput, clock: Clock = time.monotonic
    ) -> None:
        self._compute, self._limits, self._throughput, self._clock = compute, limits, throughput, clock
        self._admission = Admission(limits, throughput)
        self._waiting: dict[Priority, FairQueue[Job[P, R]]] = {
            each: FairQueue(int(_CREDIT_S * throughput.rate())) for each in Priority
        }
        self._announced: Counter[tuple[Priority, str]] = Counter()  # tokens being tokenised, at least
        self._live: set[Job[P, R]] = set()
        self._running: dict[asyncio.Task[None], Batch[P, R]] = {}
        self._refusal: EngineError | None = None
        self._last_priority = Priority.INTERACTIVE  # that opened the last batch
        self._bulk_since = self._last_end = clock()  # when bulk work last came to an empty queue, or ended a batch
        self._bulk_took = 0.0  # seconds of the last batch it opened
        self._largest = 0
        self.last_caller = ""
        """Who sent the last request."""
        self._contended_at = -math.inf  # when a caller with nothing waiting last met the work of another
        self._pumping = False

    @contextmanager
    def announce(self, tokens: int, priority: Priority, deadline: float | None, caller: str = "") -> Iterator[None]:
        """To be held while a request of at least `tokens` is tokenised; raises if it would be refused: that is cheap.

        Until it is submitted it counts for those that are announced after it.
        """
        self._admit(tokens, 0, priority, deadline, caller, self._announced[priority, caller])
        self._announced[priority, caller] += tokens
        try:
            yield
        finally:
            self._announced[priority, caller] -= tokens
            self._announced += Counter()  # drops those that are zero

    async def submit(
        self,
        payloads: Sequence[P],
        costs: Sequence[int],
        *,
        shared: int = 0,
        priority: Priority,
        deadline: float | None = None,
        caller: str = "",
        context: object = None,
    ) -> Outcome[R]:
        """Runs all items. Cancelling the caller drops what was not dispatched.

        Raises InvalidInput, Overloaded, DeadlineTooShort, Draining or ModelBroken for the request as a whole.
        """
        if not payloads:
            return Outcome([], 0.0, 0.0)
        total = sum(costs)
        probe = self._admit(total + shared, max(costs) + shared, priority, deadline, caller)
        job: Job[P, R] = Job(
            payloads=payloads,
            costs=costs,
            shared=shared,
            priority=priority,
            caller=caller,
            deadline=deadline,
            context=context,
            future=asyncio.get_running_loop().create_future(),
            admitted=self._clock(),
            remaining=total,
            probe=probe,
            unresolved=len(payloads),
            results=[None] * len(payloads),
        )
        if priority is Priority.BULK and not self._waiting[priority].tokens:
            self._bulk_since = job.admitted
        self.last_caller = caller
        if self._meets_another(job):
            self._contended_at = job.admitted
        self._waiting[priority].append(job)
        self._live.add(job)
        self._wake()
        try:
            await job.future
        finally:
            self._forget(job)
        assert job.started is not None
        results = [result for result in job.results if result is not None]
        return Outcome(results, job.started - job.admitted, job.forward_s)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._running or self._live)

    def largest_batch(self) -> int:
        """Tokens of the largest batch since it was asked last."""
        largest, self._largest = self._largest, 0
        return largest

    def stats(self) -> QueueStats:
        """What waits, what runs, how fast."""
        return QueueStats(
            queued_tokens=sum(queue.tokens for queue in self._waiting.values()),
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

    def _admit(
        self,
        tokens: int,
        largest: int,
        priority: Priority,
        deadline: float | None,
        caller: str,
        announced: int = 0,
    ) -> bool:
        """Raises unless the request is taken. Whether it is a probe."""
        if self._refusal:
            raise self._refusal
        # Of its own priority it finds what is served before it, which is not all that greedier callers have queued.
        queued = {
            each: queue.ahead(caller, tokens) + announced if each is priority else queue.tokens
            for each, queue in self._waiting.items()
        }
        found, probe = Found(queued, self._in_flight_s()), self._may_probe()
        left = None if deadline is None else deadline - self._clock()
        if refusal := self._admission.refusal(tokens, largest, priority, left, found, probe=probe):
            raise refusal
        return probe

    def _wake(self) -> None:
        """Pumps on the loop's next turn, so that requests arriving in one turn share a batch."""
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        while len(self._running) < self._limits.depth and (batch := self._take()):
            batch.started = self._clock()
            self._last_priority = batch.priority
            for job, _, _ in batch.parts:
                job.started = job.started or batch.started
            self._running[asyncio.ensure_future(self._run(batch))] = batch

    def _take(self) -> Batch[P, R] | None:
        now = self._clock()
        order = (
            [Priority.BULK, Priority.INTERACTIVE] if self._bulk_is_due(now) else [Priority.INTERACTIVE, Priority.BULK]
        )
        under_way = self._bulk_under_way()
        batch: Batch[P, R] | None = None
        for priority in order:
            self._drop_late(priority, now)
        for priority in order:
            limit = self._limit(now)
            if priority is Priority.BULK:
                limit = self._limits.mixed if batch else self._bulk_limit(under_way)
            while job := self._front(priority):
                if priority is Priority.BULK and not batch and under_way and job.costs[job.next] + job.shared > limit:
                    break  # it would take a batch of its own, behind the one under way
                batch = batch or Batch(priority)
                before = job.queued
                # All of a batch is answered at its end, so it ends before the first deadline of those in it.
                limit = min(limit, self._within(job, now))
                batch.fill(job, limit)
                if not job.queued:
                    self._waiting[priority].popleft()
                self._waiting[priority].served(job.caller, before - job.queued)
                if job.queued:
                    break
        return batch

    def _front(self, priority: Priority) -> Job[P, R] | None:
        """The first request of a priority that still waits."""
        jobs = self._waiting[priority]
        while (job := jobs.front()) and job.future.done():
            self._forget(jobs.popleft())  # cancelled or failed
        return job

    def _drop_late(self, priority: Priority, now: float) -> None:
        """Fails the requests that can no longer be in time behind those before them, so that these have their place."""
        ahead = 0
        for job in self._waiting[priority]:
            if job.future.done():
                continue
            error: EngineError | None = None
            if job.deadline is not None and not job.probe:
                error = self._admission.late(ahead, job.queued, job.largest, job.deadline - now)
            if error:
                self._fail(job, error)
            else:
                ahead += job.queued

    def _within(self, job: Job[P, R], now: float) -> int:
        """Tokens of a batch that ends before the request's deadline."""
        if job.deadline is None or job.probe:
            return self._limits.batch
        return self._throughput.tokens(_CERTAINTY * (job.deadline - now), self._limits.batch)

    def _may_probe(self) -> bool:
        """Whether to compute a request even if the estimate says that it will be late.

        An estimate that is too low would refuse everything for ever: only batches correct it. So a model that has had
        nothing to do for a while takes one request whatever its deadline.
        """
        idle = not self._running and not any(queue.tokens for queue in self._waiting.values())
        return idle and self._clock() - self._last_end >= _PROBE_S

    def _bulk_is_due(self, now: float) -> bool:
        """Whether bulk work has aged so much that it goes first.

        Its turn comes when interactive work has had as long as its last batch took. It gives way to those who would
        miss their deadlines for it, but not for ever.
        """
        turn = max(self._limits.bulk_patience_s, self._bulk_took)
        waited = now - self._bulk_since
        if self._last_priority is Priority.BULK or waited <= turn or self._bulk_under_way():
            return False
        job = self._front(Priority.BULK)
        if not job:
            return False
        return waited > _DEFERRED_TURNS * turn or not self._misses_deadline_for(job, now)

    def _misses_deadline_for(self, bulk: Job[P, R], now: float) -> bool:
        """Whether an interactive request would be in time now, but not after the next bulk batch."""
        first = bulk.costs[bulk.next] + bulk.shared
        batch_s = self._throughput.seconds(
            max(first, min(self._waiting[Priority.BULK].tokens, self._bulk_limit(0))), first
        )
        ahead = 0
        for job in self._waiting[Priority.INTERACTIVE]:
            ahead += job.queued
            if job.deadline is not None and job.queued:
                done = now + self._throughput.seconds(ahead)
                if done <= job.deadline < done + batch_s:
                    return True
        return False

    def _meets_another(self, job: Job[P, R]) -> bool:
        """Whether a new request is the only one of its caller that waits, and waits for the work of another.

        Callers that always have something waiting do not care how long a batch is.
        """
        queue = self._waiting[job.priority]
        if queue.waits(job.caller):
            return False
        running = (other.caller for batch in self._running.values() for other, _, _ in batch.parts)
        return queue.tokens > 0 or any(caller != job.caller for caller in running)

    def _limit(self, now: float) -> int:
        """Tokens of the next batch that an interactive request opens."""
        limit, job = self._limits.batch, self._front(Priority.INTERACTIVE)
        if job and now - self._contended_at < _CONTENDED_S:
            short = max(_SHORT_TOKENS, int(_SHORT_S * self._throughput.rate()), _SHORT_SHARED * job.shared)
            limit = min(limit, short)
        return limit

    def _bulk_under_way(self) -> int:
        """Tokens of the running batches that bulk requests opened."""
        return sum(batch.cost for batch in self._running.values() if batch.priority is Priority.BULK)

    def _bulk_limit(self, under_way: int) -> int:
        """Tokens of the next batch that a bulk request opens."""
        limits = self._limits
        return min(limits.batch, limits.bulk // limits.depth, limits.bulk - under_way)

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
        # Batches overlap if depth > 1; the model's own time runs from the end of the one before.
        took = end - max(batch.started, self._last_end)
        self._last_end = end
        if failure is None:
            self._throughput.measured(batch.cost, took)
            self._largest = max(self._largest, batch.cost)
        if not self._waiting[Priority.INTERACTIVE].tokens:
            self._admission.queue_is_empty()
        if batch.priority is Priority.BULK:
            self._bulk_since, self._bulk_took = end, took
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
        """Drops what was not dispatched. Its queue loses the empty shell when that comes to the front."""
        self._live.discard(job)
        self._waiting[job.priority].dropped(job.caller, job.queued)
        job.payloads, job.remaining, job.next = (), 0, len(job.costs)

    def _in_flight_s(self) -> float:
        """Estimated time until the running batches are done."""
        if not self._running:
            return 0.0
        oldest = min(batch.started for batch in self._running.values())
        whole = sum(self._throughput.seconds(batch.cost, batch.cost) for batch in self._running.values())
        return max(0.0, whole - (self._clock() - oldest))
