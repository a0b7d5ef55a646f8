"""Attempts, retries and hedges, step by step. tests/faults/test_balance.py has them with real workers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from gateway.models.balance import Connection
from gateway.models.dispatch import Dispatcher, DispatchSettings, Work
from gateway.models.replicas import Replica, Replicas
from gateway.telemetry import GatewayMetrics
from services.runtime.channel import ChannelSettings, Connector
from services.runtime.errors import DeadlineTooShort, Problem, UpstreamUnavailable
from services.runtime.telemetry.names import AnswerKind, Attempt
from services.runtime.telemetry.setup import Telemetry

NOTHING = grpc.aio.Metadata()
LOST = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, NOTHING, NOTHING, "lost")
LATE = grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, NOTHING, NOTHING, "late")
SMALL = Work(10, interactive=True)


class Call(asyncio.Future[str]):
    """A call whose end the test decides. Its stub is the replica's number."""


@dataclass
class Pool:
    """A dispatcher whose calls the test answers."""

    dispatcher: Dispatcher[int]
    replicas: Replicas[int]
    metrics: GatewayMetrics
    calls: list[tuple[int, Call, float]] = field(default_factory=list)

    def send(self, stub: int, timeout_s: float) -> Call:
        self.calls.append((stub, Call(), timeout_s))
        return self.calls[-1][1]

    def start(self, work: Work = SMALL, within_s: float = 60.0) -> "asyncio.Task[str]":
        deadline = asyncio.get_running_loop().time() + within_s
        return asyncio.create_task(self.dispatcher.call(self.send, deadline, work))

    async def sent(self, count: int) -> list[Call]:
        while len(self.calls) < count:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
        return [call for _, call, _ in self.calls]

    async def is_usual(self, seconds: float) -> None:
        """So long have small calls taken."""
        for _ in range(20):
            self.dispatcher._interactive_s.add(seconds)

    def made(self, attempt: Attempt) -> int:
        return self.metrics._attempts[AnswerKind.EMBED, attempt]

    @property
    def in_flight(self) -> int:
        return sum(len(replica.load.unanswered) + replica.load.work for replica in self.replicas.current)


@asynccontextmanager
async def pool_of(count: int, attempts: int = 3) -> AsyncIterator[Pool]:
    targets = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in range(1, count + 1))
    stubs = iter(range(count))
    connector = Connector(Telemetry(), ChannelSettings())
    replicas: Replicas[int] = Replicas("embed worker", targets, connector, lambda channel: next(stubs))
    for replica in replicas.current:
        replica.load.connection = Connection.READY
    metrics = GatewayMetrics(Telemetry())
    settings = DispatchSettings(attempts, hedge_tokens=512)
    dispatcher = Dispatcher("embed worker", AnswerKind.EMBED, replicas, settings, metrics)
    yield Pool(dispatcher, replicas, metrics)
    await replicas.close()


async def test_a_retry_goes_to_another_replica_with_the_time_that_is_left() -> None:
    async with pool_of(3) as pool:
        task = pool.start(within_s=60.0)
        for count in (1, 2):
            (await pool.sent(count))[-1].set_exception(LOST)
        (await pool.sent(3))[-1].set_result("answer")
        assert await task == "answer"
        assert sorted(stub for stub, _, _ in pool.calls) == [0, 1, 2]
        assert pool.calls[2][2] < pool.calls[0][2] <= 60.0
        assert pool.made(Attempt.RETRY) == 2
        assert pool.in_flight == 0


@pytest.mark.parametrize("silent", [False, True])
async def test_a_connection_that_is_down_is_no_other_replica(silent: bool) -> None:
    async with pool_of(2) as pool:
        task = pool.start()
        [call] = await pool.sent(1)
        for replica in pool.replicas.current:
            if replica.stub == pool.calls[0][0]:
                replica.look = lambda: None  # type: ignore[method-assign]  # nobody listens there
                replica.load.silent = silent
            else:
                replica.load.connection = Connection.FAILING
        call.set_exception(LOST)
        (await pool.sent(2))[1].set_result("answer")
        assert await task == "answer"
        assert pool.calls[0][0] == pool.calls[1][0]


async def test_attempts_are_limited() -> None:
    async with pool_of(5, attempts=2) as pool:
        task = pool.start()
        for count in (1, 2):
            (await pool.sent(count))[-1].set_exception(LOST)
        with pytest.raises(UpstreamUnavailable):
            await task
        assert len(pool.calls) == 2


async def test_without_a_budget_there_is_no_retry() -> None:
    async with pool_of(3) as pool:
        retries = 0
        for number in range(300):
            before = len(pool.calls)
            task = pool.start(Work(10))
            while not task.done():
                calls = await pool.sent(len(pool.calls))
                for call in calls[before:]:
                    if not call.done():
                        call.set_exception(LOST)
                await asyncio.sleep(0)
            assert isinstance(task.exception(), UpstreamUnavailable)
            retries += len(pool.calls) - before - 1
            assert retries <= 0.1 * (number + 1) + 100 + 50  # the reserve is refilled as time passes
        assert retries < 300


async def test_a_problem_of_the_request_is_not_retried() -> None:
    async with pool_of(3) as pool:
        task = pool.start()
        invalid = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, NOTHING, NOTHING, "fault")
        (await pool.sent(1))[0].set_exception(invalid)
        with pytest.raises(Problem):
            await task
        assert len(pool.calls) == 1


async def test_time_that_is_over_is_not_retried() -> None:
    async with pool_of(3) as pool:
        with pytest.raises(DeadlineTooShort):
            await pool.start(within_s=0.0)
        assert not pool.calls
        assert pool.in_flight == 0


async def test_what_cannot_be_in_time_at_one_replica_is_retried_at_another() -> None:
    async with pool_of(2) as pool:
        task = pool.start()
        (await pool.sent(1))[0].set_exception(LATE)
        (await pool.sent(2))[1].set_result("answer")
        assert await task == "answer"
        task = pool.start()
        for count in (3, 4):
            (await pool.sent(count))[-1].set_exception(LATE)
        with pytest.raises(DeadlineTooShort):
            await task
        assert len(pool.calls) == 4


async def test_what_has_had_most_of_its_time_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool_of(2) as pool:
        task = pool.start(within_s=60.0)
        [call] = await pool.sent(1)
        clock = pool.dispatcher._clock
        monkeypatch.setattr(pool.dispatcher, "_clock", lambda: clock() + 31)
        call.set_exception(LATE)
        with pytest.raises(DeadlineTooShort):
            await task
        assert len(pool.calls) == 1


async def test_the_faster_of_two_attempts_counts_and_the_other_is_cancelled() -> None:
    async with pool_of(2) as pool:
        await pool.is_usual(0.005)
        for winner in (0, 1):
            pool.calls.clear()
            task = pool.start()
            calls = await pool.sent(2)
            calls[winner].set_result(f"answer {winner}")
            assert await task == f"answer {winner}"
            await asyncio.wait(calls)
            assert calls[1 - winner].cancelled()
            while pool.in_flight:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0)
        assert pool.made(Attempt.HEDGE) == 2
        assert pool.made(Attempt.RETRY) == 0


async def test_if_one_of_two_attempts_fails_the_other_counts_and_if_both_fail_a_third_is_made() -> None:
    async with pool_of(3) as pool:
        await pool.is_usual(0.005)
        for first in (0, 1):
            pool.calls.clear()
            task = pool.start()
            calls = await pool.sent(2)
            calls[first].set_exception(LOST)
            await asyncio.wait(calls[first : first + 1])
            calls[1 - first].set_result("answer")
            assert await task == "answer"
        pool.calls.clear()
        task = pool.start()
        for call in await pool.sent(2):
            call.set_exception(LOST)
        (await pool.sent(3))[2].set_result("answer")
        assert await task == "answer"
        assert sorted(stub for stub, _, _ in pool.calls) == [0, 1, 2]
        assert pool.in_flight == 0


async def test_a_caller_that_leaves_takes_both_attempts_along() -> None:
    async with pool_of(2) as pool:
        await pool.is_usual(0.005)
        task = pool.start()
        calls = await pool.sent(2)
        task.cancel()
        await asyncio.wait([task, *calls])
        assert all(call.cancelled() for call in calls)
        while pool.in_flight:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)


async def test_a_hedge_that_is_not_needed_any_more_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer arrives in the moment in which the second attempt is decided."""
    async with pool_of(2) as pool:
        await pool.is_usual(0.005)
        choose = pool.dispatcher._second

        def late(*arguments: Any) -> Replica[int] | None:
            pool.calls[0][1].set_result("answer")
            return choose(*arguments)

        monkeypatch.setattr(pool.dispatcher, "_second", late)
        assert await pool.start() == "answer"
        await asyncio.sleep(0)
        assert len(pool.calls) == 1
        assert pool.in_flight == 0


@pytest.mark.parametrize("reason", ["paused", "silent", "budget"])
async def test_there_is_no_hedge(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool_of(2) as pool:
        await pool.is_usual(0.0)
        for replica in pool.replicas.current:
            if reason == "paused":
                replica.load.paused_until = float("inf")
            elif reason == "silent":
                replica.load.silent = True
        while reason == "budget" and pool.dispatcher._hedges.spend(asyncio.get_running_loop().time()):
            pass
        asked = asyncio.Event()
        choose = pool.dispatcher._second

        def second(*arguments: Any) -> Replica[int] | None:
            asked.set()
            return choose(*arguments)

        monkeypatch.setattr(pool.dispatcher, "_second", second)
        task = pool.start()
        await asked.wait()
        (await pool.sent(1))[0].set_result("answer")
        await task
        assert len(pool.calls) == 1
