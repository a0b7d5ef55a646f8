"""What our channels promise: assumptions about grpc's own behaviour, kept as tests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.channel import ChannelSettings, Connector, channel
from services.runtime.errors import ReplicaFull
from services.runtime.telemetry.setup import Telemetry
from tests.support.certificates import Certificates
from tests.support.proxy import proxy
from tests.support.scripted import SERVICE, Scripted
from tests.support.serving import PlainSettings, Served, failure, rich_status, serving
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


async def test_a_refusal_is_not_retried() -> None:
    """Whoever calls knows what may be sent twice, and how often."""
    busy = Scripted(full)
    async with pool(busy) as (stub, _):
        error = await failure(stub.Embed(embed_pb2.EmbedRequest(), timeout=10))
    assert rich_status(error).reason == "REPLICA_FULL"
    assert busy.calls == 1


async def test_a_replica_that_is_not_serving_gets_no_calls() -> None:
    leaving, staying = Scripted(), Scripted()
    async with pool(leaving, staying, health_service=SERVICE) as (stub, servers):
        while not (leaving.calls and staying.calls):
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
        servers[0].lifecycle.stop()
        await servers[0].lifecycle.announce()
        in_a_row = 0
        while in_a_row < 10:  # the news travels; until it is there, calls are refused
            try:
                await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
                in_a_row += 1
            except grpc.aio.AioRpcError:
                in_a_row = 0


async def test_calls_to_a_frozen_server_fail() -> None:
    """Its connection stays up, as the kernel's does when a process is stopped or a network swallows all packets."""
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(Scripted()))
        way = await stack.enter_async_context(proxy(int(served.address.rpartition(":")[2])))
        to = await stack.enter_async_context(channel(f"ipv4:127.0.0.1:{way.port}", Telemetry()))
        stub = embed_pb2_grpc.EmbedServiceStub(to)
        await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
        way.swallow(True)
        error = await failure(stub.Embed(embed_pb2.EmbedRequest()))  # no deadline: nothing else would end it
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_is_known_by_its_name_at_any_address(tmp_path: Path) -> None:
    files = Certificates(tmp_path, "winnow-embed")
    settings = PlainSettings(tls_cert=files.cert, tls_key=files.key)
    trusting = ChannelSettings(tls=True, tls_ca=files.ca)
    application = Scripted()
    async with serving(application, settings) as served:
        for authority, code in (
            ("winnow-embed:50051", None),
            ("winnow-rerank:50051", grpc.StatusCode.UNAVAILABLE),
            (None, grpc.StatusCode.UNAVAILABLE),
        ):
            async with Connector(Telemetry(), trusting)(f"ipv4:{served.address}", authority) as to:
                call = embed_pb2_grpc.EmbedServiceStub(to).Embed(embed_pb2.EmbedRequest(), timeout=10)
                if code is None:
                    await call
                else:
                    assert (await failure(call)).code() is code
    assert application.calls == 1


def test_tls_files_that_cannot_be_read_are_reported_before_there_is_an_address(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Connector(Telemetry(), ChannelSettings(tls=True, tls_ca=tmp_path / "ca.crt"))


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
