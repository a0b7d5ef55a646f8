"""States of each fault that services.runtime.grpc_workarounds lists that grpc is right by itself.

All are expected to fail. One that passes after an upgrade of grpc fails the suite: its workaround can go.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from tests.support.scripted import Scripted
from tests.support.waiting import until
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

# A fault shows by waiting this long in vain; an answer that comes at all comes much sooner.
IN_VAIN_S = 2.0


def fault(raises: type[Exception]) -> pytest.MarkDecorator:
    return pytest.mark.xfail(reason="a fault of grpc 1.85.1", strict=True, raises=raises)


@asynccontextmanager
async def bare(servicer: embed_pb2_grpc.EmbedServiceServicer) -> AsyncIterator[str]:
    """The address of a server of grpc's own that serves the servicer, without any part of ours."""
    server = grpc.aio.server()
    embed_pb2_grpc.add_EmbedServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@fault(AssertionError)
async def test_the_server_waits_for_one_future_however_many_methods_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    wait = asyncio.wait

    async def recorded(futures: Iterable[asyncio.Task[object]], **named: Any) -> object:
        waited.append(len(list(futures)))
        return await wait(futures, **named)

    monkeypatch.setattr(asyncio, "wait", recorded)
    async with bare(Scripted()) as address, grpc.aio.insecure_channel(address) as channel:
        await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed_pb2.EmbedRequest())
    assert max(waited, default=0) < 3, waited


@fault(TimeoutError)
async def test_a_health_watch_ends_when_its_server_stops() -> None:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health_aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        try:
            await asyncio.wait_for(server.stop(30), IN_VAIN_S)
        finally:
            watch.cancel()
            await server.stop(0)


@fault(TimeoutError)
async def test_a_call_that_cannot_start_has_a_status() -> None:
    async with bare(Scripted()) as address, grpc.aio.insecure_channel(address) as channel:
        call = embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed_pb2.EmbedRequest(), metadata=[("key", "a\nb")])
        with pytest.raises(BaseException):  # noqa: B017 - whatever grpc says
            await call
        assert await asyncio.wait_for(call.code(), IN_VAIN_S) is not grpc.StatusCode.OK


class TwoKinds(grpc.aio.UnaryUnaryClientInterceptor, grpc.aio.StreamStreamClientInterceptor):
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self.seen.append("unary")
        return await continuation(client_call_details, request)

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        self.seen.append("stream")
        return await continuation(client_call_details, request_iterator)


@fault(AssertionError)
async def test_one_interceptor_sees_every_kind_of_call_that_it_is_an_instance_of() -> None:
    interceptor = TwoKinds()
    async with (
        bare(Scripted()) as address,
        grpc.aio.insecure_channel(address, interceptors=[interceptor]) as channel,
    ):
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        await stub.Embed(embed_pb2.EmbedRequest())
        async for _ in stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest()])):
            pass
    assert interceptor.seen == ["unary", "stream"]


@fault(AssertionError)
async def test_a_handler_that_ends_by_a_stray_cancellation_has_a_status() -> None:
    async def answer(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with bare(Scripted(answer)) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed_pb2.EmbedRequest(), timeout=IN_VAIN_S)
    assert failed.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED


@fault(TimeoutError)
async def test_what_an_aborted_call_was_sent_is_freed() -> None:
    async def answer(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")

    def kept() -> list[object]:
        return [each for each in gc.get_objects() if issubclass(type(each), grpc.aio.AbortError) and each.__traceback__]

    async with bare(Scripted(answer)) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed_pb2.EmbedRequest())
        await asyncio.wait_for(until(lambda: not kept()), IN_VAIN_S)


class Unread(Scripted):
    """EmbedStream sends more than flow control lets through unread; notes the tasks that it begins and ends in."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.began, self.ended = asyncio.Event(), asyncio.Event()

    async def EmbedStream(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[embed_pb2.EmbedStreamRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        self.tasks.append(asyncio.current_task())
        try:
            self.began.set()
            yield embed_pb2.EmbedStreamResponse(results=[embed_pb2.EmbedStreamResult(id="x" * (16 << 20))])
        finally:
            self.tasks.append(asyncio.current_task())
            self.ended.set()


@fault(AssertionError)
async def test_the_generator_of_a_cancelled_stream_is_closed_by_its_own_task() -> None:
    servicer = Unread()
    async with bare(servicer) as address, grpc.aio.insecure_channel(address) as channel:
        call = embed_pb2_grpc.EmbedServiceStub(channel).EmbedStream(iter([embed_pb2.EmbedStreamRequest()]))
        await servicer.began.wait()
        call.cancel()
        await asyncio.wait_for(servicer.ended.wait(), 20)
    assert servicer.tasks[0] is servicer.tasks[1]
