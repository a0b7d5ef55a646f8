"""Sends a call to a pool: the choice of the replica, retries on other replicas, and hedging.

Every call to a worker is a pure function of its request, so sending it twice is safe; what bounds it is load. Retries
and hedges have a budget each, a share of the calls, so that an overload or a fault is never multiplied.

A call is retried if its replica cannot be reached or has refused it. If it could not be in time there, it is retried
while at least half of its time is left. Each retry goes to another replica, if there is one. A hedge is the second
attempt of a small interactive call that has waited longer than 95 % of them: the first answer counts, the other attempt
is cancelled.
"""

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc

from gateway.models.balance import Balance, Rank, Sent
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
# If no replica answers, a call that has had this long is not sent to another one.
_PATIENCE_S = 1.0
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
            try:
                if not problems:
                    return await self._first_attempt(send, replica, tried, deadline, work)
                return await self._again(send, replica, deadline, work, names.Attempt.RETRY)
            except (ReplicaFull, NotReady, UpstreamUnavailable, DeadlineTooShort) as problem:
                problems.append(problem)
                now = self._clock()
                if isinstance(problem, DeadlineTooShort) and now - began >= deadline - now:
                    raise self._for_caller(problems) from problem
                if isinstance(problem, UpstreamUnavailable):
                    replica.look()
                    self._replicas.suspect()
                next_one = await self._next(problem, tried, began, deadline, work)
                if next_one is None:
                    raise self._for_caller(problems) from problem
                replica = next_one
                tried.append(replica)

    def _choose(self, replicas: Sequence[Replica[S]], work: Work) -> Replica[S]:
        if not work.tokens:
            return self._balance.in_turn(replicas, self._clock())
        return self._balance.choose(replicas, work.tokens, self._clock())

    async def _next(
        self, problem: Problem, tried: Sequence[Replica[S]], began: float, deadline: float, work: Work
    ) -> Replica[S] | None:
        """The replica for another attempt after `problem`; None if there shall be none."""
        if len(tried) >= self._settings.attempts or _forbids_retry(problem):
            return None
        now = self._clock()
        others = [
            replica
            for replica in self._replicas.current
            if replica not in tried and replica.load.rank(now) is not Rank.FAILING
        ]
        if not others:
            if not isinstance(problem, UpstreamUnavailable):
                return None
            backoff_s = _BACKOFF_S * 2 ** (len(tried) - 1)
            if now + backoff_s >= deadline:
                return None
            await asyncio.sleep(backoff_s)
            others = self._replicas.current
        now = self._clock()
        replica = self._choose(others, work)
        if now >= deadline or (replica.load.silent and now - began > _PATIENCE_S) or not self._retries.spend(now):
            return None
        return replica

    async def _attempt(
        self, send: Send[S, Reply], replica: Replica[S], sent: Sent, deadline: float, kind: names.Attempt
    ) -> Reply:
        """Sends the call to one replica, once, and notes how it ends. Raises a Problem."""
        load, balance = replica.load, self._balance
        self._metrics.attempt(self._kind, kind)
        pause_s: float | None = None
        answered = False
        try:
            timeout_s = deadline - sent.at
            if timeout_s <= 0:
                raise DeadlineTooShort
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
            raise problem from error
        except asyncio.CancelledError:
            if not sent.given_up or was_cancelled():
                raise
            raise UpstreamUnavailable(self._what, "does not answer") from None
        finally:
            now = self._clock()
            if answered:
                balance.answered(load, sent, now)
            else:
                balance.failed(load, sent, now, pause_s)

    async def _again(
        self, send: Send[S, Reply], replica: Replica[S], deadline: float, work: Work, kind: names.Attempt
    ) -> Reply:
        """Another attempt. As a task it notes the call only when it runs: it may be cancelled before."""
        return await self._attempt(send, replica, self._sent(replica, work), deadline, kind)

    def _sent(self, replica: Replica[S], work: Work) -> Sent:
        return self._balance.sent(replica.load, work.tokens, self._clock())

    async def _first_attempt(
        self, send: Send[S, Reply], first: Replica[S], tried: list[Replica[S]], deadline: float, work: Work
    ) -> Reply:
        """The result of one attempt; of the faster of two, if the call is hedged. Raises the Problem of the first one.

        The replica of the second attempt is added to `tried`.
        """
        sent = self._sent(first, work)
        small = work.interactive and 0 < work.tokens <= self._settings.hedge_tokens
        if not small or len(self._replicas.current) < 2:
            return await self._attempt(send, first, sent, deadline, names.Attempt.FIRST)
        second: list[asyncio.Task[Reply]] = []

        def hedge() -> None:
            replica = self._second(first, work)
            if replica is not None:
                tried.append(replica)
                attempt = self._again(send, replica, deadline, work, names.Attempt.HEDGE)
                second.append(asyncio.create_task(attempt))
                second[0].add_done_callback(overtake)

        def overtake(attempt: "asyncio.Task[Reply]") -> None:
            if not attempt.cancelled() and attempt.exception() is None:
                sent.give_up()

        self._hedges.earn(sent.at)
        usual_s = self._interactive_s.value
        timer = None
        if usual_s is not None:
            timer = asyncio.get_running_loop().call_later(max(usual_s, _LEAST_HEDGE_S), hedge)
        try:
            reply = await self._attempt(send, first, sent, deadline, names.Attempt.FIRST)
        except Problem:
            if not second:
                raise
            with suppress(Problem):
                reply = await second[0]
                self._interactive_s.add(self._clock() - sent.at)
                return reply
            raise
        else:
            self._interactive_s.add(self._clock() - sent.at)
            return reply
        finally:
            if timer is not None:
                timer.cancel()
            for attempt in second:
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


def _forbids_retry(problem: Problem) -> bool:
    """True if the server said so: it has retried itself, and retries must not multiply."""
    error = problem.__cause__
    metadata = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError) else None
    return any(key == PUSHBACK_KEY and str(value).startswith("-") for key, value in metadata or ())
