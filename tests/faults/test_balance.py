"""Replicas that are frozen, slow, killed, restarted or full: the others answer, and nobody is asked too often."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from bench.reliability.network import Namespace, unavailable
from services.runtime.errors import NotReady, ReplicaFull
from services.runtime.telemetry.names import AnswerKind, Attempt, ReplicaState
from tests.support.gateway import Running, running
from tests.support.proxy import proxy
from tests.support.redis import free_port
from tests.support.serving import PlainSettings, failure, rich_status, serving
from tests.support.waiting import until, until_available
from tests.support.worker_process import WorkerProcess
from tests.support.workers import Context, EmbedWorker
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2

# As many calls at once as a few replicas may have.
AT_ONCE = 8

# Processes start in seconds, or in many if the machine is busy.
pytestmark = pytest.mark.timeout(180)

Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts workers; kills what is left after the test."""
    workers: list[WorkerProcess] = []

    def started(listen: str = "127.0.0.1:0", within: Sequence[str] = ()) -> WorkerProcess:
        workers.append(WorkerProcess(tmp_path, listen, within))
        return workers[-1]

    yield started
    for worker in workers:
        worker.close()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace behind a link that can be bad."""
    if missing := unavailable():
        pytest.skip(missing)
    with Namespace() as made:
        yield made


def target(*addresses: str) -> str:
    return "ipv4:" + ",".join(addresses)


def states(gateway: Running) -> dict[ReplicaState, int]:
    return gateway.gateway._embed_pool._replicas.states()


def attempts(gateway: Running) -> Counter[str]:
    made = gateway.gateway._metrics._attempts
    return Counter({attempt: made[AnswerKind.EMBED, attempt] for attempt in Attempt})


class Load:
    """Calls of different texts, one after the other in each of several tasks, until `end`."""

    def __init__(self, gateway: Running, timeout: float = 20) -> None:
        self._gateway, self._timeout = gateway, timeout
        self._ending = False
        self.seen: Counter[str] = Counter()
        self._tasks = [asyncio.create_task(self._calls(number)) for number in range(AT_ONCE)]

    async def _calls(self, number: int) -> None:
        count = 0
        while not self._ending:
            count += 1
            try:
                await embed(self._gateway, f"{id(self)} {number} {count}", timeout=self._timeout)
            except grpc.aio.AioRpcError as error:
                self.seen[f"{error.code().name} {error.details()}"] += 1
            else:
                self.seen["OK"] += 1

    async def more(self, count: int) -> None:
        """Waits for so many answers from now on."""
        wanted = self.seen.total() + count
        await until(lambda: self.seen.total() >= wanted)

    async def end(self) -> Counter[str]:
        """The answers by status."""
        self._ending = True
        await asyncio.gather(*self._tasks)
        return self.seen


def embed(gateway: Running, text: str, **options: Any) -> Any:
    priority = options.pop("priority", common_pb2.PRIORITY_UNSPECIFIED)
    return gateway.embed.Embed(embed_pb2.EmbedRequest(texts=[text], priority=priority), **options)


async def usable(gateway: Running, count: int) -> None:
    await until(lambda: states(gateway)[ReplicaState.USABLE] == count)


async def started(start: Start, count: int) -> tuple[list[WorkerProcess], list[str]]:
    workers = [start() for _ in range(count)]
    return workers, [await asyncio.to_thread(worker.serving) for worker in workers]


async def test_a_frozen_replica_costs_no_call_and_is_back_when_it_goes_on(start: Start) -> None:
    workers, addresses = await started(start, 3)
    async with running(embed_target=target(*addresses), workers_hedge_tokens=0) as gateway:
        await usable(gateway, 3)
        load = Load(gateway)
        await load.more(100)
        workers[1].signal(signal.SIGSTOP)
        await until(lambda: states(gateway)[ReplicaState.USABLE] == 2)
        await load.more(AT_ONCE)  # all that were sent to it have been sent to another one
        before = attempts(gateway)
        assert 0 < before[Attempt.RETRY] <= AT_ONCE
        await load.more(300)
        assert attempts(gateway)[Attempt.RETRY] == before[Attempt.RETRY]
        workers[1].signal(signal.SIGCONT)
        await usable(gateway, 3)
        assert (await load.end()).keys() == {"OK"}


async def test_a_replica_behind_a_bad_link_costs_no_call(start: Start, namespace: Namespace) -> None:
    start(f"{namespace.inside}:50051", namespace.command())
    _, [near] = await started(start, 1)
    async with running(embed_target=target(near, f"{namespace.inside}:50051"), workers_hedge_tokens=0) as gateway:
        await usable(gateway, 2)
        load = Load(gateway)
        await load.more(50)
        namespace.degrade(delay_s=0.05, jitter_s=0.02, loss=0.02)
        await load.more(200)
        namespace.degrade(loss=1.0)
        await until(lambda: states(gateway)[ReplicaState.USABLE] == 1)
        assert namespace.lost > 0
        await load.more(AT_ONCE)
        before = attempts(gateway)
        await load.more(100)
        assert attempts(gateway)[Attempt.RETRY] == before[Attempt.RETRY]
        namespace.degrade()
        await usable(gateway, 2)
        assert (await load.end()).keys() == {"OK"}


async def test_all_frozen_is_unavailable_in_time_and_over_at_once(start: Start) -> None:
    workers, addresses = await started(start, 2)
    async with running(embed_target=target(*addresses)) as gateway:
        await usable(gateway, 2)
        await embed(gateway, "before")
        for worker in workers:
            worker.signal(signal.SIGSTOP)
        for number in range(3):
            error = await failure(embed(gateway, f"text {number}", timeout=45))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert rich_status(error).reason == "UPSTREAM_UNAVAILABLE"
        for worker in workers:
            worker.signal(signal.SIGCONT)
        await until_available(lambda: embed(gateway, "after", timeout=20))
        await usable(gateway, 2)


async def test_the_only_replica_is_frozen_and_the_call_is_not_left_to_its_deadline(start: Start) -> None:
    [worker], addresses = await started(start, 1)
    async with running(embed_target=addresses[0]) as gateway:
        await embed(gateway, "before")
        worker.signal(signal.SIGSTOP)
        error = await failure(embed(gateway, "meanwhile", timeout=45))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        worker.signal(signal.SIGCONT)
        await until_available(lambda: embed(gateway, "after", timeout=20))


async def test_a_killed_replica_costs_no_call(start: Start) -> None:
    workers, addresses = await started(start, 3)
    async with running(embed_target=target(*addresses)) as gateway:
        await usable(gateway, 3)
        load = Load(gateway)
        await load.more(100)
        workers[0].signal(signal.SIGKILL)
        await until(lambda: states(gateway)[ReplicaState.USABLE] == 2)
        await load.more(100)
        assert (await load.end()).keys() == {"OK"}


async def test_a_rolling_restart_costs_no_call(start: Start) -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    workers = [start(address) for address in addresses]
    for worker in workers:
        await asyncio.to_thread(worker.serving)
    async with running(embed_target=target(*addresses)) as gateway:
        await usable(gateway, 2)
        load = Load(gateway)
        for worker, address in zip(workers, addresses, strict=True):
            await load.more(50)
            worker.signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.join) == 0
            await load.more(50)
            await asyncio.to_thread(start(address).serving)
            await usable(gateway, 2)
        assert (await load.end()).keys() == {"OK"}


class Known(EmbedWorker):
    """Knows the connections that it was called on."""

    def __init__(self) -> None:
        super().__init__()
        self.peers: set[str] = set()

    async def Embed(self, request: embed_pb2.EmbedRequest, context: Context) -> embed_pb2.EmbedResponse:  # noqa: N802
        self.peers.add(context.peer())
        return await super().Embed(request, context)


@pytest.mark.parametrize("count", [1, 2])
async def test_connections_that_are_closed_by_age_cost_no_call(count: int) -> None:
    workers = [Known() for _ in range(count)]
    async with AsyncExitStack() as stack:
        settings = PlainSettings(connection_age_seconds=0.1)
        addresses = [(await stack.enter_async_context(serving(worker, settings))).address for worker in workers]
        gateway = await stack.enter_async_context(running(embed_target=target(*addresses)))
        load = Load(gateway)
        await until(lambda: min(len(worker.peers) for worker in workers) > 5)
        assert (await load.end()).keys() == {"OK"}


class Slow(EmbedWorker):
    """Takes a hundred times as long as others."""

    async def answer(self, request: embed_pb2.EmbedRequest) -> embed_pb2.EmbedResponse:
        answer = await super().answer(request)
        await asyncio.sleep(0.5)  # its slowness, not the test's patience
        return answer


@asynccontextmanager
async def pool_of(*workers: EmbedWorker, **settings: Any) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        addresses = [(await stack.enter_async_context(serving(worker))).address for worker in workers]
        gateway = await stack.enter_async_context(running(embed_target=target(*addresses), **settings))
        await usable(gateway, len(workers))
        yield gateway


async def test_a_slow_replica_gets_few_calls() -> None:
    workers = [EmbedWorker(), EmbedWorker(), Slow()]
    async with pool_of(*workers, workers_hedge_tokens=0) as gateway:
        load = Load(gateway)
        await load.more(600)
        assert (await load.end()).keys() == {"OK"}
    assert 1 <= len(workers[2].requests) <= 0.05 * sum(len(worker.requests) for worker in workers)


async def test_a_small_call_that_takes_long_is_hedged_and_the_loser_cancelled() -> None:
    one, two = EmbedWorker(), EmbedWorker()
    async with pool_of(one, two) as gateway:
        for number in range(40):  # how long such calls take
            await embed(gateway, f"before {number}")
        one.gate, one.waiting = asyncio.Event(), asyncio.Event()
        number = 0
        while not one.waiting.is_set():
            number += 1
            await embed(gateway, f"text {number}", timeout=20)
        await until(lambda: one.cancelled)
        assert attempts(gateway)[Attempt.RETRY] == 0


async def test_only_small_calls_that_someone_waits_for_are_hedged() -> None:
    one, two = EmbedWorker(), EmbedWorker()
    async with pool_of(one, two) as gateway:
        for number in range(40):
            await embed(gateway, f"before {number}")
        one.gate = two.gate = asyncio.Event()

        def sent(start: str) -> int:
            texts = [request.texts[0] for worker in (one, two) for request in worker.requests]
            return sum(text.startswith(start) for text in texts)

        bulk = asyncio.ensure_future(embed(gateway, "bulk", priority=common_pb2.PRIORITY_BULK))
        large = asyncio.ensure_future(embed(gateway, "large " * 1000))
        await until(lambda: sent("bulk") and sent("large"))
        small = asyncio.ensure_future(embed(gateway, "small"))
        await until(lambda: sent("small") == 2)
        one.gate.set()
        await asyncio.gather(bulk, large, small)

        assert (sent("bulk"), sent("large")) == (1, 1)


async def test_one_replica_is_never_hedged() -> None:
    async with pool_of(EmbedWorker()) as gateway:
        for number in range(100):
            await embed(gateway, f"text {number}")
        made = attempts(gateway)
        assert (made[Attempt.RETRY], made[Attempt.HEDGE]) == (0, 0)


async def test_a_pool_that_is_full_is_not_asked_three_times() -> None:
    workers = [EmbedWorker(), EmbedWorker(), EmbedWorker()]
    for worker, retry_after_s in zip(workers, (0.3, 0.2, 0.4), strict=True):
        worker.problem = ReplicaFull(retry_after_s)
    async with pool_of(*workers) as gateway:
        began, calls = time.monotonic(), 600
        error = await failure(embed(gateway, "first"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = rich_status(error)
        assert answer.reason == "OVERLOADED"
        assert answer.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 200
        for _ in range(calls // AT_ONCE):
            errors = await asyncio.gather(*(failure(embed(gateway, f"text {number}")) for number in range(AT_ONCE)))
            assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        asked = sum(len(worker.requests) for worker in workers)
        assert asked <= 1.1 * (calls + 1) + 100 + (time.monotonic() - began)


async def test_a_lost_connection_to_the_only_replica_is_made_again() -> None:
    worker = EmbedWorker()
    async with (
        serving(worker) as served,
        proxy(int(served.address.rpartition(":")[2])) as way,
        running(embed_target=f"127.0.0.1:{way.port}") as gateway,
    ):
        await embed(gateway, "before")
        way.lose_reply(b"marked")
        await embed(gateway, "marked")
        assert worker.texts == ["before", "marked", "marked"]
        assert attempts(gateway)[Attempt.RETRY] == 1


async def test_what_a_server_has_retried_itself_is_not_retried() -> None:
    """A gateway in front of a gateway, which has no workers."""
    async with running(no_embed=True) as back, running(embed_target=back.served.address) as front:
        await usable(front, 1)
        before = attempts(back)[Attempt.FIRST]
        assert (await failure(embed(front, "text", timeout=20))).code() is grpc.StatusCode.UNAVAILABLE
        assert attempts(back)[Attempt.FIRST] > before
        assert attempts(front)[Attempt.RETRY] == 0


@pytest.mark.parametrize("problem", [ReplicaFull(0.01), NotReady("draining")])
async def test_a_replica_that_refuses_is_passed_over(problem: Exception) -> None:
    refusing, well = EmbedWorker(), EmbedWorker()
    refusing.problem = problem
    async with pool_of(refusing, well) as gateway:
        load = Load(gateway)
        await load.more(200)
        assert (await load.end()).keys() == {"OK"}
    assert len(refusing.requests) < len(well.requests)


class Stuck(EmbedWorker):
    """Counts who asks for its model."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def GetModel(  # noqa: N802 - the contract's name
        self, request: embed_pb2.GetModelRequest, context: Context
    ) -> embed_pb2.GetModelResponse:
        self.asked += 1
        return await super().GetModel(request, context)


async def test_a_replica_that_hangs_is_left_alone_but_its_calls_are_not_given_up() -> None:
    """Its model has much to do, or is stuck; the process says that it is there, so whoever wants to wait may."""
    stuck, well = Stuck(), EmbedWorker()
    async with pool_of(stuck, well, workers_hedge_tokens=0, model_refresh_seconds=600) as gateway:
        for number in range(40):
            await embed(gateway, f"before {number}")
        stuck.gate, stuck.waiting, stuck.asked = asyncio.Event(), asyncio.Event(), 0
        load = Load(gateway)
        await stuck.waiting.wait()
        await until(lambda: stuck.asked >= 3)
        assert states(gateway)[ReplicaState.SILENT] == 0
        calls = len(stuck.requests)
        await load.more(100)
        assert len(stuck.requests) == calls
        assert stuck.cancelled == 0
        stuck.gate.set()
        assert (await load.end()).keys() == {"OK"}
