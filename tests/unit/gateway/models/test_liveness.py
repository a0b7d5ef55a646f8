"""Replicas that do not answer, tick by tick."""

import asyncio
from typing import Any

import grpc
import pytest

from gateway.models.balance import Balance, Connection, Load, Sent
from gateway.models.liveness import Liveness

NOTHING = grpc.aio.Metadata()


class Replica:
    """Answers what the test wants."""

    def __init__(self) -> None:
        self.load = Load()
        self.load.connection = Connection.READY
        self.stub = self
        self.asked = 0
        self.waits: list[bool] = []
        self.answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def look(self) -> None:
        pass

    def send(self, now: float = 0.0) -> Sent:
        return Balance().sent(self.load, 10, now)


class Pool:
    """Replicas that are watched."""

    def __init__(self, *replicas: Replica) -> None:
        self.current = self.connected = list(replicas)
        self.liveness: Liveness[Any] = Liveness(self, self.ask)  # type: ignore[arg-type]

    async def ask(self, replica: Replica, timeout_s: float, wait: bool) -> object:
        replica.asked += 1
        replica.waits.append(wait)
        return await replica.answer

    async def ticks(self, count: int, now: float = 0.0) -> None:
        for _ in range(count):
            self.liveness.tick(now)
            await asyncio.sleep(0)
            await asyncio.sleep(0)


async def test_an_idle_replica_is_not_asked() -> None:
    idle = Replica()
    await Pool(idle).ticks(100)
    assert idle.asked == 0


async def test_one_that_answers_calls_is_not_asked_however_many_there_are() -> None:
    busy = Replica()
    pool = Pool(busy)
    busy.send()  # one is never answered, others are
    for _ in range(100):
        busy.load.heard()
        await pool.ticks(1)
    assert busy.asked == 0


async def test_a_busy_one_answers_and_keeps_its_calls() -> None:
    busy, other = Replica(), Replica()
    pool = Pool(busy, other)
    sent = busy.send()
    busy.answer.set_result(None)
    await pool.ticks(100)
    assert busy.asked > 5
    assert not busy.load.silent
    assert not sent.given_up


async def test_a_silent_one_loses_its_calls_within_nine_ticks_and_is_back_when_it_answers() -> None:
    frozen, other = Replica(), Replica()
    pool = Pool(frozen, other)
    sent = frozen.send()
    await pool.ticks(9)
    assert frozen.load.silent
    assert sent.given_up
    assert frozen.asked == 1
    frozen.answer.set_result(None)
    await pool.ticks(1)
    assert not frozen.load.silent


async def test_calls_that_are_cancelled_do_not_hide_that_it_is_silent() -> None:
    frozen, other = Replica(), Replica()
    pool = Pool(frozen, other)
    for _ in range(9):
        sent = frozen.send()
        await pool.ticks(1)
        Balance().failed(frozen.load, sent, 0.0)
    assert frozen.load.silent


async def test_without_another_replica_its_calls_have_more_time() -> None:
    frozen = Replica()
    pool = Pool(frozen)
    sent = frozen.send(now=0.0)
    await pool.ticks(20, now=9.9)
    assert frozen.load.silent
    assert not sent.given_up
    await pool.ticks(1, now=10.0)
    assert sent.given_up


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_a_connection_that_fails_is_no_silence_but_no_answer_either(code: grpc.StatusCode) -> None:
    gone = Replica()
    pool = Pool(gone)
    sent = gone.send(now=0.0)
    gone.answer.set_exception(grpc.aio.AioRpcError(code, NOTHING, NOTHING))
    await pool.ticks(20, now=9.0)
    assert not gone.load.silent
    assert not sent.given_up
    gone.answer = asyncio.get_running_loop().create_future()
    await pool.ticks(9)
    assert gone.load.silent
    gone.answer.set_exception(grpc.aio.AioRpcError(code, NOTHING, NOTHING))
    await pool.ticks(3)
    assert gone.load.silent  # until it answers
    assert gone.waits[-1]  # until there is a connection


async def test_an_error_of_the_replica_is_an_answer() -> None:
    strange = Replica()
    pool = Pool(strange)
    strange.send()
    await pool.ticks(9)
    assert strange.load.silent
    strange.answer.set_exception(grpc.aio.AioRpcError(grpc.StatusCode.UNIMPLEMENTED, NOTHING, NOTHING))
    await pool.ticks(1)
    assert not strange.load.silent


async def test_one_that_is_gone_is_forgotten() -> None:
    pool = Pool(Replica(), Replica())
    await pool.ticks(1)
    pool.connected = pool.current = pool.current[:1]
    await pool.ticks(1)
    assert len(pool.liveness._seen) == 1
