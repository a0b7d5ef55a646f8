"""What our channels promise: assumptions about grpc's own behaviour, kept as tests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.channel import ChannelSettings, channel
from services.runtime.errors import ReplicaFull
from services.runtime.telemetry.setup import Telemetry
from tests.support.proxy import proxy
from tests.support.scripted import SERVICE, Scripted
from tests.support.serving import Served, failure, rich_status, serving
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc


def target(*servers: Served) -> str:
    return "ipv4:" + ",".join(served.address for served in servers)


@asynccontextmanager
async def pool(
    *applications: Scripted, settings: ChannelSettings | None = None, health_service: str | None = None
) -> AsyncIterator[tuple["embed_pb2_grpc.EmbedServiceAsyncStub", list[Served]]]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(application)) for application in applications]
        to = channel(target(*servers), Telemetry(), settings, health_service=health_service)
        yield embed_pb2_grpc.EmbedServiceStub(await stack.enter_async_context(to)), servers


async def full(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    raise ReplicaFull(0.05)


async def test_calls_are_spread_over_all_addresses() -> None:
    applications = [Scripted(), Scripted(), Scripted()]
    async with pool(*applications) as (stub, _):
        while not all(application.calls for application in applications):  # until each is connected
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
        before = [application.calls for application in applications]
        for _ in range(30):
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
        assert [a.calls - b for a, b in zip(applications, before, strict=True)] == [10, 10, 10]


async def test_a_full_replica_is_tried_elsewhere() -> None:
    busy, idle = Scripted(full), Scripted()
    async with pool(busy, idle) as (stub, _):
        for _ in range(10):
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
    assert idle.calls == 10
    assert busy.calls > 0


async def test_a_large_request_is_tried_elsewhere_too() -> None:
    busy, idle = Scripted(full), Scripted()
    request = embed_pb2.EmbedRequest(texts=["x" * (1 << 20)])  # grpc's own limit for this is 256 KiB
    async with pool(busy, idle) as (stub, _):
        while not busy.calls:
            await stub.Embed(request, timeout=10)


async def test_attempts_are_bounded_and_the_last_status_is_told() -> None:
    busy = Scripted(full)
    async with pool(busy, settings=ChannelSettings(attempts=3)) as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
    assert rich_status(error.value).reason == "REPLICA_FULL"
    assert busy.calls == 3


async def test_a_replica_that_is_not_serving_gets_no_calls() -> None:
    leaving, staying = Scripted(), Scripted()
    async with pool(leaving, staying, health_service=SERVICE) as (stub, servers):
        while not (leaving.calls and staying.calls):
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
        servers[0].lifecycle.stop()
        await servers[0].lifecycle.announce()
        in_a_row = 0
        while in_a_row < 10:  # the news travels; until it is there, retries cover it
            before = leaving.calls
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
            in_a_row = in_a_row + 1 if leaving.calls == before else 0


async def test_a_frozen_replica_is_found_out_and_its_calls_go_elsewhere() -> None:
    """Its connection stays up, as the kernel's does when a process is stopped or a network swallows all packets."""
    frozen, well = Scripted(), Scripted()
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(application)) for application in (frozen, well)]
        way = await stack.enter_async_context(proxy(int(servers[0].address.rpartition(":")[2])))
        to = await stack.enter_async_context(channel(f"ipv4:127.0.0.1:{way.port},{servers[1].address}", Telemetry()))
        stub = embed_pb2_grpc.EmbedServiceStub(to)
        while not (frozen.calls and well.calls):
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
        way.swallow(True)
        before = frozen.calls
        await asyncio.gather(*(stub.Embed(embed_pb2.EmbedRequest(), timeout=15) for _ in range(20)))
        assert frozen.calls == before
        for _ in range(20):  # from then on none is sent there
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=2)


async def test_a_replica_that_comes_up_late_is_waited_for() -> None:
    late = serving(Scripted(), start=False)
    async with late as served, channel(served.address, Telemetry(), health_service=SERVICE) as to:
        call = embed_pb2_grpc.EmbedServiceStub(to).Embed(embed_pb2.EmbedRequest(), timeout=30, wait_for_ready=True)
        await served.lifecycle.ready()
        await call


async def test_nobody_there_is_unavailable() -> None:
    async with serving(Scripted()) as served:
        address = served.address
    async with channel(address, Telemetry()) as to:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await embed_pb2_grpc.EmbedServiceStub(to).Embed(embed_pb2.EmbedRequest(), timeout=10)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_proxy_to_the_internet_is_not_the_way_to_our_own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nobody is there
    async with pool(Scripted()) as (stub, _):
        await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)


@pytest.mark.parametrize("token", ["line feed\n", "zero\x00", "schlüssel"])
async def test_a_call_that_cannot_start_fails_at_once(token: str, caplog: pytest.LogCaptureFixture) -> None:
    """gRPC refuses such metadata before anything is sent; a unary call then has no status to wait for."""
    async with pool(Scripted(), settings=ChannelSettings(token=token)) as (stub, servers):
        calls: list[Awaitable[object]] = [
            stub.Embed(embed_pb2.EmbedRequest()),  # no deadline: nothing else would end them
            stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest()])).read(),
            stub.EmbedStream().read(),
        ]
        for call in calls:
            error = await failure(asyncio.wait_for(call, 30))
            assert error.code() is grpc.StatusCode.INTERNAL
        assert await asyncio.wait_for(stub.Embed(embed_pb2.EmbedRequest()).code(), 30) is grpc.StatusCode.INTERNAL
        async with channel(servers[0].address, Telemetry(), ChannelSettings(token=token)) as to:
            watch = health_pb2_grpc.HealthStub(to).Watch(health_pb2.HealthCheckRequest())
            assert (await failure(asyncio.wait_for(watch.read(), 30))).code() is grpc.StatusCode.INTERNAL
    assert "a call of winnow.embed.v1.EmbedService/Embed could not start" in caplog.text
    assert token not in caplog.text
