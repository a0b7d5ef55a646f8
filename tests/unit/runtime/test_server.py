"""What happens around a handler: limits, strays, the gate, health, reflection."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.runtime import server
from services.runtime.lifecycle import LIVENESS
from tests.support.scripted import SERVICE, Scripted
from tests.support.serving import PlainSettings, Served, failure, rich_status, serving
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

EMBED = f"/{SERVICE}/Embed"
CODES = grpc.StatusCode
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def raw(served: Served, method: str = EMBED) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    """The method, without any encoding of the request."""
    return served.channel.unary_unary(method, request_serializer=None, response_deserializer=None)


async def test_an_answer_passes_untouched() -> None:
    async with serving(Scripted()) as served:
        assert await raw(served)(b"", timeout=10) == b""


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x03\xed\xa0\x80", b"\x0a\xff\xff\xff\x7f"])
async def test_malformed_messages_are_the_callers_fault(data: bytes) -> None:
    # The second and third are strings that are no UTF-8; the third is a lone surrogate.
    application = Scripted()
    async with serving(application) as served:
        seen = rich_status(await failure(raw(served)(data, timeout=10)))
    assert (seen.code, seen.reason) == (CODES.INVALID_ARGUMENT, "INVALID_FIELD")
    assert seen.fields == ["winnow.embed.v1.EmbedRequest"]
    assert application.calls == 0


async def test_a_message_over_the_limit_is_refused_by_name() -> None:
    settings = PlainSettings(max_message_bytes=1 << 16)
    async with serving(Scripted(), settings) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        fits = embed_pb2.EmbedRequest(texts=["x" * ((1 << 16) - 4)])
        assert fits.ByteSize() == 1 << 16
        await stub.Embed(fits, timeout=10)
        fits.texts[0] += "x"
        seen = rich_status(await failure(stub.Embed(fits, timeout=10)))
        assert (seen.code, seen.fields) == (CODES.INVALID_ARGUMENT, ["winnow.embed.v1.EmbedRequest"])
        assert str(1 << 16) in seen.status.message
        # Far over it grpc itself cuts the message off, before it takes memory.
        fits.texts[0] *= 3
        assert (await failure(stub.Embed(fits, timeout=10))).code() is CODES.RESOURCE_EXHAUSTED


async def test_a_malformed_message_within_a_stream_ends_it() -> None:
    async with serving(Scripted()) as served:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        method = served.channel.stream_stream(f"/{SERVICE}/EmbedStream", None, None)
        call = method(timeout=10)
        await call.write(b"")
        assert await call.read() == b""
        await call.write(b"\xff")
        seen = rich_status(await failure(call.read()))
    assert (seen.code, seen.fields) == (CODES.INVALID_ARGUMENT, ["winnow.embed.v1.EmbedStreamRequest"])


async def cancelled_future(
    request: embed_pb2.EmbedRequest | embed_pb2.EmbedStreamRequest, context: grpc.aio.ServicerContext[Any, Any]
) -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def test_a_stray_cancellation_reaches_the_caller_at_once() -> None:
    async with serving(Scripted(cancelled_future)) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        seen = rich_status(await failure(stub.Embed(embed_pb2.EmbedRequest(), timeout=30)))
        assert (seen.code, seen.reason) == (CODES.INTERNAL, "INTERNAL")
        call = stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest()]), timeout=30)
        assert rich_status(await failure(call.read())).code is CODES.INTERNAL


async def test_a_real_cancellation_ends_the_handler() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def answer(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(Scripted(answer)) as served:
        call = embed_pb2_grpc.EmbedServiceStub(served.channel).Embed(embed_pb2.EmbedRequest())
        await began.wait()
        call.cancel()
        await asyncio.wait_for(ended.wait(), 10)


async def test_an_exceptions_text_never_reaches_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        raise ValueError(f"cannot digest {request.texts[0]}")

    async with serving(Scripted(answer)) as served:
        call = raw(served)(embed_pb2.EmbedRequest(texts=["a private letter"]).SerializeToString(), timeout=10)
        error = await failure(call)
    seen = rich_status(error)
    assert (seen.code, seen.reason) == (CODES.INTERNAL, "INTERNAL")
    incident = seen.status.message.split()[4]
    assert incident in caplog.text
    for leak in ("digest", "private letter", "ValueError"):
        assert leak not in str(error)
    assert "private letter" not in caplog.text


async def test_a_code_that_a_handler_chose_itself_is_kept() -> None:
    async def answer(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(CODES.DATA_LOSS, "lost")

    async with serving(Scripted(answer)) as served:
        error = await failure(raw(served)(b"", timeout=10))
    assert (error.code(), error.details()) == (CODES.DATA_LOSS, "lost")


async def test_an_unknown_method_is_unimplemented() -> None:
    async with serving(Scripted()) as served:
        assert (await failure(raw(served, f"/{SERVICE}/Nothing")(b"", timeout=10))).code() is CODES.UNIMPLEMENTED


async def test_while_it_loads_calls_are_refused_and_health_says_so() -> None:
    async with serving(Scripted(), start=False) as served:
        seen = rich_status(await failure(raw(served)(b"", timeout=10)))
        assert (seen.code, seen.reason) == (CODES.UNAVAILABLE, "NOT_READY")
        assert "loading" in seen.status.message
        health = health_pb2_grpc.HealthStub(served.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
        assert (await watch.read()).status == NOT_SERVING
        await served.lifecycle.ready()
        assert (await watch.read()).status == SERVING
        await raw(served)(b"", timeout=10)
        served.lifecycle.stop()
        await served.lifecycle.announce()
        assert (await watch.read()).status == NOT_SERVING
        seen = rich_status(await failure(raw(served)(b"", timeout=10)))
        assert (seen.code, seen.reason) == (CODES.UNAVAILABLE, "NOT_READY")
        assert "draining" in seen.status.message


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("loading", [NOT_SERVING, NOT_SERVING, SERVING]),
        ("serving", [SERVING, SERVING, SERVING]),
        ("draining", [NOT_SERVING, NOT_SERVING, SERVING]),
        ("broken", [NOT_SERVING, NOT_SERVING, NOT_SERVING]),
    ],
)
async def test_health_by_name(phase: str, expected: list[int]) -> None:
    async with serving(Scripted(), start=phase != "loading") as served:
        if phase == "draining":
            served.lifecycle.stop()
        if phase == "broken":
            served.lifecycle.fail()
        await served.lifecycle.announce()
        health = health_pb2_grpc.HealthStub(served.channel)
        names = ["", SERVICE, LIVENESS]
        checks = [await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10) for name in names]
        assert [check.status for check in checks] == expected
        unknown = await failure(health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10))
        assert unknown.code() is CODES.NOT_FOUND


async def reflected(served: Served) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]), timeout=10)
    response = await call.read()
    return [service.name for service in response.list_services_response.service]


async def test_reflection_lists_the_services() -> None:
    async with serving(Scripted()) as served:
        assert {SERVICE, "grpc.health.v1.Health"} <= set(await reflected(served))
    async with serving(Scripted(), PlainSettings(reflection=False)) as served:
        assert (await failure(reflected(served))).code() is CODES.UNIMPLEMENTED


async def test_the_process_is_idle_when_its_calls_have_ended() -> None:
    began, release = asyncio.Event(), asyncio.Event()

    async def answer(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        began.set()
        await release.wait()

    async with serving(Scripted(answer)) as served:
        call = raw(served)(b"", timeout=10)
        await began.wait()
        idle = asyncio.create_task(served.lifecycle.idle())
        served.lifecycle.stop()
        await asyncio.sleep(0)
        assert not idle.done()
        release.set()
        await call
        await asyncio.wait_for(idle, 10)


async def test_a_port_that_is_taken_is_an_error() -> None:
    async with serving(Scripted()) as served:
        with pytest.raises(RuntimeError):
            async with serving(Scripted(), PlainSettings(listen=served.address)):
                pass


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MAX_CONNECTIONS", 2)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
    async with serving(Scripted()) as served:
        await raw(served)(b"", timeout=10)
        async with grpc.aio.insecure_channel(served.address, options) as second:
            await embed_pb2_grpc.EmbedServiceStub(second).Embed(embed_pb2.EmbedRequest(), timeout=10)
            async with grpc.aio.insecure_channel(served.address, options) as third:
                one_more = embed_pb2_grpc.EmbedServiceStub(third).Embed(embed_pb2.EmbedRequest(), timeout=10)
                assert (await failure(one_more)).code() is CODES.UNAVAILABLE
            await embed_pb2_grpc.EmbedServiceStub(second).Embed(embed_pb2.EmbedRequest(), timeout=10)
