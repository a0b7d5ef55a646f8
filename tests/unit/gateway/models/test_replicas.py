"""The replicas of a pool follow the addresses of its name."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc
import pytest

from gateway.models import replicas as module
from gateway.models.balance import Balance, Connection, Rank
from gateway.models.replicas import Name, Replica, Replicas, Resolve, parse, resolve
from services.runtime.channel import ChannelSettings, Connector
from services.runtime.telemetry.names import ReplicaState
from services.runtime.telemetry.setup import Telemetry
from tests.support.scripted import SERVICE, Scripted
from tests.support.serving import serving
from tests.support.waiting import until
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

CONNECT = Connector(Telemetry(), ChannelSettings(), SERVICE)
Stub: TypeAlias = "embed_pb2_grpc.EmbedServiceAsyncStub"


@pytest.mark.parametrize(
    ("target", "parsed"),
    [
        ("dns:///winnow-embed:50051", Name("winnow-embed", 50051)),
        ("dns:winnow-embed:50051", Name("winnow-embed", 50051)),
        ("winnow-embed.winnow.svc:50051", Name("winnow-embed.winnow.svc", 50051)),
        ("localhost:50051", ["localhost:50051"]),
        ("dns:///localhost:50051", ["dns:///localhost:50051"]),
        ("127.0.0.1:50051", ["127.0.0.1:50051"]),
        ("[::1]:50051", ["[::1]:50051"]),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", ["ipv4:10.0.0.1:1", "ipv4:10.0.0.2:2"]),
        ("ipv6:[::1]:1,[::2]:2", ["ipv6:[::1]:1", "ipv6:[::2]:2"]),
        ("unix:/run/winnow.sock", ["unix:/run/winnow.sock"]),
        ("unix:///run/winnow.sock", ["unix:///run/winnow.sock"]),
        ("dns://10.0.0.53/winnow-embed:50051", ["dns://10.0.0.53/winnow-embed:50051"]),
        ("xds:///winnow-embed", ["xds:///winnow-embed"]),
    ],
)
def test_a_target_is_a_name_or_a_list_of_replicas(target: str, parsed: Name | list[str]) -> None:
    assert parse(target) == parsed


async def test_a_name_becomes_all_its_addresses() -> None:
    assert "ipv4:127.0.0.1:50051" in await resolve("localhost", 50051)
    assert await resolve("::1", 50051) == ["ipv6:[::1]:50051"]


async def test_a_name_that_does_not_exist_raises() -> None:
    with pytest.raises(OSError, match=r"."):
        await resolve("no-such-host.invalid", 50051)


class Names:
    """What a resolver answers."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses
        self.error: Exception | None = None
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return [f"ipv4:{address}" for address in self.addresses]


@asynccontextmanager
async def pool(names: Resolve) -> AsyncIterator["Replicas[Stub]"]:
    replicas: Replicas[Stub] = Replicas(
        "embed worker", "dns:///workers:1", CONNECT, embed_pb2_grpc.EmbedServiceStub, names
    )
    watching = asyncio.create_task(replicas.watch())
    try:
        yield replicas
    finally:
        watching.cancel()
        await replicas.close()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up all the time."""
    monkeypatch.setattr(module, "_LOOK_UP_EVERY_S", 0.01)


def targets(replicas: "Replicas[Stub]") -> list[str]:
    return [replica.target for replica in replicas.current]


async def connected(replica: "Replica[Stub]") -> None:
    def is_ready() -> bool:
        replica.look()
        return replica.load.connection is Connection.READY

    await until(is_ready)


async def test_added_and_removed_addresses_are_followed_and_calls_in_progress_finish(often: None) -> None:
    began, release = asyncio.Event(), asyncio.Event()

    async def answer(request: embed_pb2.EmbedRequest, context: object) -> None:
        began.set()
        await release.wait()

    async with serving(Scripted(answer)) as one, serving(Scripted()) as two:
        names = Names(one.address)
        async with pool(names) as replicas:
            await replicas.available(asyncio.get_running_loop().time() + 10)
            [leaving] = replicas.current
            long = asyncio.ensure_future(leaving.stub.Embed(embed_pb2.EmbedRequest(), timeout=30))
            await began.wait()
            sent = Balance().sent(leaving.load, 10, 0.0)  # as who sends a call does
            names.addresses = [one.address, two.address]
            await until(lambda: len(replicas.current) == 2)
            assert replicas.current[0] is leaving
            names.addresses = [two.address]
            await until(lambda: len(replicas.current) == 1)
            assert targets(replicas) == [f"ipv4:{two.address}"]
            asked = names.asked
            await until(lambda: names.asked > asked + 2)
            assert leaving in replicas.connected
            release.set()
            await long
            Balance().answered(leaving.load, sent, 0.0)
            await until(lambda: leaving not in replicas.connected)
            await until(lambda: leaving._channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN)


@pytest.mark.parametrize("error", [OSError("no answer"), UnicodeError("label too long"), None])
async def test_a_look_up_that_fails_or_finds_nothing_changes_nothing(often: None, error: Exception | None) -> None:
    names = Names("127.0.0.1:1")
    async with pool(names) as replicas:
        await until(lambda: replicas.current)
        before = list(replicas.current)
        names.error, names.addresses = error, []
        asked = names.asked
        await until(lambda: names.asked > asked + 2)
        assert replicas.current == before


async def test_a_failed_look_up_is_logged_once(often: None, caplog: pytest.LogCaptureFixture) -> None:
    names = Names()
    names.error = OSError("no answer")
    async with pool(names):
        await until(lambda: names.asked > 3)
    assert [record.getMessage() for record in caplog.records] == ["embed worker: workers cannot be resolved (OSError)"]


async def test_a_name_that_appears_is_found_by_the_call_that_needs_it() -> None:
    names = Names()
    names.error = OSError("not yet")
    async with pool(names) as replicas:
        deadline = asyncio.get_running_loop().time() + 10
        assert await replicas.available(deadline) == []
        names.error, names.addresses = None, ["127.0.0.1:1"]
        assert len(await replicas.available(deadline)) == 1


async def test_after_a_failure_the_addresses_are_looked_up_at_once_but_not_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names("127.0.0.1:1")
    async with pool(names) as replicas:
        await until(lambda: replicas.current)
        for _ in range(10):
            replicas.suspect()
        assert names.asked == 1  # the last look-up was a moment ago
        monkeypatch.setattr(module, "_LOOK_UP_PAUSE_S", 0.0)
        replicas.suspect()
        await until(lambda: names.asked == 2)


async def test_states_follow_the_connection_and_the_health_of_a_replica() -> None:
    async with serving(Scripted(), start=False) as served, pool(Names(served.address)) as replicas:
        await until(lambda: replicas.current)
        [replica] = replicas.current
        assert replica.load.rank(0.0) is Rank.CONNECTING

        def failing() -> bool:
            replica.look()
            return replica.load.connection is Connection.FAILING

        await until(failing)  # it is loading
        assert replicas.states()[ReplicaState.FAILING] == 1
        await served.lifecycle.ready()
        await connected(replica)
        assert replicas.states() == {state: int(state is ReplicaState.USABLE) for state in ReplicaState}
