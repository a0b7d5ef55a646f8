"""Sends a call to a pool: the choice of the replica, retries on other replicas, and hedging.

Every call to a worker is a pure function of its request, so sending it twice is safe; what bounds it is load. Retries
and hedges have a budget each, a share of the calls, so that an overload or a fault is never multiplied.

A call is retried if its replica refused it or cannot be reached, and each retry goes to another replica. A hedge is the
second attempt of a small interactive call that has waited longer than 95 % of them: the first answer counts, the other
attempt is cancelled.
"""

import asyncio
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc

from gateway.models.balance import Balance, Rank
from gateway.models.replicas import Replica, Replicas
from gateway.models.retry_budget import Percentile95, RetryBudget
from gateway.telemetry import GatewayMetrics
from services.runtime.errors import (
    DeadlineTooShort,
    NotReady,
    PoolSaturated,
    Problem,
    ReplicaFull,
    UpstreamUnavailable,
)
from services.runtime.rpc_status import PUSHBACK_KEY, from_rpc_error, was_cancelled
from services.runtime.telemetry import names

_RETRY_SHARE, _RETRY_RESERVE = 0.1, 100.0
_HEDGE_SHARE, _HEDGE_RESERVE = 0.05, 10.0
# A hedge waits at least this long: less is within the noise of a busy machine.
_LEAST_HEDGE_S = 0.005
# A replica that has refused a call is passed over for as long as it says, up to this.
_MOST_PAUSE_S = 0.2
# Wait before a call is sent again to a replica that was tried: its connection may be up again.
_BACKOFF_S = 0.02

S = TypeVar("S")
Reply = TypeVar("Reply")
Reply_co = TypeVar("Reply_co", covariant=True)


class RunningCall(Protocol[Reply_co]):
    """A call of grpc.aio."""

    def __await__(self) -> Generator[Any, None, Reply_co]:
        """Its response. Raises AioRpcError."""

    def cancel(self) -> bool:
        """Ends it."""


Send = Callable[[S, float], RunningCall[Reply]]
"""Sends a request, bound to it, on a stub. The second argument is the timeout in seconds."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a call asks of a worker: estimated tokens, and whether someone waits for it. 0: an answer from memory."""

    tokens: int = 0
    interactive: bool = False


NO_WORK = Work()


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """`attempts`: of one call, besides a hedge. `hedge_tokens`: the largest call that is hedged; 0: none."""

    attempts: int
    hedge_tokens: int


class Dispatcher(Generic[S]):
    """Sends calls to the replicas. `what` is their name in messages, `kind` in metrics."""

    def __init__(
        self,
        what: str,
        kind: names.AnswerKind,
        replicas: Replicas[S],
        settings: DispatchSettings,
        metrics: GatewayMetrics,
    ) -> None:
        self._what, self._kind, self._replicas = what, kind, replicas
        self._settings, self._metrics = settings, metrics
        self._balance = Balance()
        self._clock = asyncio.get_running_loop().time
        now = self._clock()
        self._retries = RetryBudget(_RETRY_SHARE, _RETRY_RESERVE, now)
        self._hedges = RetryBudget(_HEDGE_SHARE, _HEDGE_RESERVE, now)
        self._interactive_s = Percentile95()

    async def call(self, send: Send[S, Reply], deadline: float, work: Work = NO_WORK) -> Reply:
        """The response of one replica, before `deadline` (`loop.time()`). Raises a Problem for the gateway's caller."""
        replicas = self._replicas.current or await self._replicas.available(deadline)
        if not replicas:
            raise UpstreamUnavailable(self._what)
        began = self._clock()
        self._retries.earn(began)
        replica = self._choose(replicas, work)
        tried = [replica]
        problems: list[Problem] = []
        while True:
            kind = names.Attempt.RETRY if problems else names.Attempt.FIRST
            try:
                if not problems and self._may_hedge(replicas, work):
                    return await self._hedged(send, replica, tried, deadline, work)
                return await self._attempt(send, replica, deadline, work, kind)
            except (ReplicaFull, NotReady, UpstreamUnavailable) as problem:
                problems.append(problem)
                self._replicas.suspect()
                next_one = await self._next(problem, tried, deadline, work)
                if next_one is None:
                    raise self._for_caller(problems) from problem
                replica = next_one
                tried.append(replica)

    def _choose(self, replicas: Sequence[Replica[S]], work: Work) -> Replica[S]:
        if not work.tokens:
            return self._balance.in_turn(replicas, self._clock())
        return self._balance.choose(replicas, work.tokens, self._clock())

    async def _next(
        self, problem: Problem, tried: Sequence[Replica[S]], deadline: float, work: Work
    ) -> Replica[S] | None:
        """The replica for another attempt after `problem`; None if there shall be none."""
        if len(tried) >= self._settings.attempts or _forbids_retry(problem):
            return None
        others = [replica for replica in self._replicas.current if replica not in tried]
        if not others:
            if not isinstance(problem, UpstreamUnavailable):
                return None
            backoff_s = _BACKOFF_S * 2 ** (len(tried) - 1)
            if self._clock() + backoff_s >= deadline:
                return None
            await asyncio.sleep(backoff_s)
            others = self._replicas.current
        now = self._clock()
        replica = self._choose(others, work)
        if replica.load.silent or now >= deadline or not self._retries.spend(now):
            return None
        return replica

    async def _attempt(
        self, send: Send[S, Reply], replica: Replica[S], deadline: float, work: Work, kind: names.Attempt
    ) -> Reply:
        """Sends the call to one replica, once. Raises a Problem."""
        load, balance = replica.load, self._balance
        began = self._clock()
        timeout_s = deadline - began
        if timeout_s <= 0:
            raise DeadlineTooShort
        self._metrics.attempt(self._kind, kind)
        sent = balance.sent(load, work.tokens, began)
        pause_s: float | None = None
        answered = False
        try:
            call = send(replica.stub, timeout_s)
            sent.cancel = call.cancel
            reply = await call
            answered = True
            return reply
        except grpc.aio.AioRpcError as error:
            problem = from_rpc_error(error, self._what)
            if isinstance(problem, (ReplicaFull, NotReady)):
                pause_s = min(problem.retry_after_s, _MOST_PAUSE_S)
            elif load.silent and isinstance(problem, DeadlineTooShort):
                problem = UpstreamUnavailable(self._what, "does not answer")
            replica.look()
            raise problem from error
        except asyncio.CancelledError:
            if not sent.given_up or was_cancelled():
                raise
            raise UpstreamUnavailable(self._what, "does not answer") from None
        finally:
            now = self._clock()
            if answered:
                balance.answered(load, sent, now)
                if self._is_small(work):
                    self._interactive_s.add(now - began)
            else:
                balance.failed(load, sent, now, pause_s)

    def _is_small(self, work: Work) -> bool:
        return work.interactive and 0 < work.tokens <= self._settings.hedge_tokens

    def _may_hedge(self, replicas: Sequence[Replica[S]], work: Work) -> bool:
        return len(replicas) > 1 and self._interactive_s.value is not None and self._is_small(work)

    async def _hedged(
        self, send: Send[S, Reply], first: Replica[S], tried: list[Replica[S]], deadline: float, work: Work
    ) -> Reply:
        """The first of two answers. The second replica is asked if the first one takes long, and is added to `tried`.

        Raises the Problem of the first one if both fail.
        """
        assert self._interactive_s.value is not None
        delay_s = max(self._interactive_s.value, _LEAST_HEDGE_S)
        self._hedges.earn(self._clock())
        one = asyncio.create_task(self._attempt(send, first, deadline, work, names.Attempt.FIRST))
        attempts = [one]
        try:
            await asyncio.wait(attempts, timeout=delay_s)
            if not one.done() and (second := self._second(first, work)) is not None:
                tried.append(second)
                attempts.append(asyncio.create_task(self._attempt(send, second, deadline, work, names.Attempt.HEDGE)))
            return await _first_result(attempts)
        finally:
            for attempt in attempts:
                attempt.add_done_callback(_retrieve)
                attempt.cancel()

    def _second(self, first: Replica[S], work: Work) -> Replica[S] | None:
        """The replica for a hedge. None while replicas refuse calls, which a hedge would make worse."""
        now = self._clock()
        current = self._replicas.current
        others = [replica for replica in current if replica is not first]
        if not others or any(replica.load.rank(now) is Rank.PAUSED for replica in current):
            return None
        second = self._balance.choose(others, work.tokens, now)
        if second.load.rank(now) is not Rank.USABLE or not self._hedges.spend(now):
            return None
        return second

    def _for_caller(self, problems: Sequence[Problem]) -> Problem:
        """What the failed attempts mean to the gateway's caller."""
        full = [problem.retry_after_s for problem in problems if isinstance(problem, ReplicaFull)]
        if full:
            return PoolSaturated(min(full))
        last = problems[-1]
        if isinstance(last, NotReady):
            return UpstreamUnavailable(self._what, "is starting or stopping", last.retry_after_s)
        return last


async def _first_result(attempts: Sequence["asyncio.Task[Reply]"]) -> Reply:
    """Of the first attempt that succeeds; otherwise raises what the first one in the list has raised."""
    pending = set(attempts)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for attempt in done:
            if not attempt.cancelled() and attempt.exception() is None:
                return attempt.result()
    return await attempts[0]


def _retrieve(attempt: "asyncio.Task[Any]") -> None:
    """Marks the exception of an attempt that nobody waits for as seen."""
    if not attempt.cancelled():
        attempt.exception()


def _forbids_retry(problem: Problem) -> bool:
    """True if the server said so: it has retried itself, and retries must not multiply."""
    error = problem.__cause__
    metadata = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError) else None
    return any(key == PUSHBACK_KEY and str(value).startswith("-") for key, value in metadata or ())
