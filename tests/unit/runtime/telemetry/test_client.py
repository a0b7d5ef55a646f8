"""Spans and metrics of a call, on both of its sides."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from services.runtime.callers import Caller, calling
from services.runtime.channel import ChannelSettings, channel
from services.runtime.errors import InvalidField, ReplicaFull
from services.runtime.telemetry import names
from services.runtime.telemetry.setup import Telemetry
from tests.support.otlp import Receiver, attributes, scraped
from tests.support.scripted import SERVICE, Scripted
from tests.support.serving import rich_status, serving
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

METHOD = f"{SERVICE}/Embed"


STREAM = f"{SERVICE}/EmbedStream"


async def test_one_trace_from_client_to_server(telemetry: Telemetry, collected: Receiver) -> None:
    async with serving(Scripted(), telemetry=telemetry) as served, channel(served.address, telemetry) as to:
        with telemetry.tracer.start_as_current_span("caller"):
            await embed_pb2_grpc.EmbedServiceStub(to).Embed(embed_pb2.EmbedRequest(), timeout=10)
        spans = await collected.wait_for(lambda spans: len(spans) >= 3)
    by_kind = {span.kind: span for span in spans}
    caller, client, server = (
        by_kind[kind] for kind in (Span.SPAN_KIND_INTERNAL, Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
    )
    assert client.parent_span_id == caller.span_id
    assert server.parent_span_id == client.span_id
    assert {span.trace_id for span in spans} == {caller.trace_id}
    assert client.name == server.name == METHOD
    assert set(collected.services.values()) == {"winnow-test"}
    for span in (client, server):
        found = attributes(span.attributes)
        assert (found[names.RPC_SYSTEM], found[names.RPC_METHOD], found[names.RPC_STATUS]) == ("grpc", METHOD, "OK")
        assert names.ERROR_TYPE not in found
    host, port = served.address.split(":")
    assert attributes(client.attributes)[names.SERVER_ADDRESS] == host
    assert attributes(client.attributes)[names.SERVER_PORT] == int(port)


async def test_a_stream_is_one_span_on_either_side(telemetry: Telemetry, collected: Receiver) -> None:
    async with serving(Scripted(), telemetry=telemetry) as served, channel(served.address, telemetry) as to:
        call = embed_pb2_grpc.EmbedServiceStub(to).EmbedStream(timeout=10)
        for _ in range(3):
            await call.write(embed_pb2.EmbedStreamRequest())
            await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        client, server = sorted(await collected.wait_for(lambda spans: len(spans) == 2), key=lambda span: -span.kind)
    assert (client.kind, server.kind) == (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
    assert server.parent_span_id == client.span_id
    assert client.name == server.name == STREAM


async def test_a_server_is_told_who_the_caller_is() -> None:
    seen: list[object] = []

    async def note(request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        seen.append(dict(context.invocation_metadata() or ()).get("winnow-caller"))

    async with serving(Scripted(note)) as served, channel(served.address, Telemetry()) as to:
        stub = embed_pb2_grpc.EmbedServiceStub(to)
        await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
        with calling(Caller("spiffe://example.org/a b")):
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
            await stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest()]), timeout=10).read()
    assert seen == [None, *["spiffe://example.org/a%20b"] * 2]


async def refuse(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    raise InvalidField("texts", "is wrong")


async def break_down(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    raise ValueError("a private letter")


async def overflow(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    raise ReplicaFull(0.01)


@pytest.mark.parametrize(
    ("answer", "code", "reason", "server_error"),
    [
        (refuse, "INVALID_ARGUMENT", "INVALID_FIELD", False),
        (overflow, "UNAVAILABLE", "REPLICA_FULL", True),
        (break_down, "INTERNAL", "INTERNAL", True),
    ],
)
async def test_a_failed_calls_spans(
    telemetry: Telemetry,
    collected: Receiver,
    caplog: pytest.LogCaptureFixture,
    answer: Callable[..., Any],
    code: str,
    reason: str,
    server_error: bool,
) -> None:
    async with serving(Scripted(answer), telemetry=telemetry) as served:
        async with channel(served.address, telemetry, ChannelSettings()) as to:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await embed_pb2_grpc.EmbedServiceStub(to).Embed(embed_pb2.EmbedRequest(), timeout=10)
        client, server = sorted(await collected.wait_for(lambda spans: len(spans) == 2), key=lambda span: -span.kind)
    for span, is_error in ((client, True), (server, server_error)):
        assert attributes(span.attributes)[names.RPC_STATUS] == code
        assert (span.status.code == Status.STATUS_CODE_ERROR) == is_error
        assert attributes(span.attributes).get(names.ERROR_TYPE) == (code if is_error else None)
        assert "private letter" not in str(span)
    assert attributes(server.attributes)[names.REASON] == reason
    if reason == "INTERNAL":  # the caller's incident is in the log and the trace
        incident = attributes(server.attributes)[names.INCIDENT]
        assert incident in rich_status(error.value).status.message
        assert incident in caplog.text


async def test_a_call_that_its_caller_cancels_has_its_spans(telemetry: Telemetry, collected: Receiver) -> None:
    began = asyncio.Event()

    async def answer(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        began.set()
        await asyncio.Event().wait()

    async with serving(Scripted(answer), telemetry=telemetry) as served, channel(served.address, telemetry) as to:
        call = asyncio.ensure_future(_embed(to))
        await began.wait()
        call.cancel()
        spans = await collected.wait_for(lambda spans: len(spans) == 2)
    assert {attributes(span.attributes)[names.RPC_STATUS] for span in spans} == {"CANCELLED"}


async def test_a_call_past_its_deadline_has_its_spans(telemetry: Telemetry, collected: Receiver) -> None:
    async def answer(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await asyncio.Event().wait()

    async with serving(Scripted(answer), telemetry=telemetry) as served, channel(served.address, telemetry) as to:
        with pytest.raises(grpc.aio.AioRpcError):
            await _embed(to, timeout=0.2)
        spans = await collected.wait_for(lambda spans: len(spans) == 2)
    assert {attributes(span.attributes)[names.RPC_STATUS] for span in spans} == {"DEADLINE_EXCEEDED"}


async def _embed(to: grpc.aio.Channel, timeout: float = 20) -> embed_pb2.EmbedResponse:
    return await embed_pb2_grpc.EmbedServiceStub(to).Embed(embed_pb2.EmbedRequest(), timeout=timeout)


async def test_the_prometheus_endpoint_counts_calls_and_refusals(telemetry: Telemetry) -> None:
    async with serving(Scripted(overflow), telemetry=telemetry) as served:
        async with channel(served.address, telemetry, ChannelSettings()) as to:
            with pytest.raises(grpc.aio.AioRpcError):
                await _embed(to)
        seen = await scraped(telemetry)
    labels = f'error_type="UNAVAILABLE",rpc_method="{METHOD}",rpc_status_code="UNAVAILABLE",rpc_system_name="grpc"'
    assert seen[f"rpc_server_call_duration_seconds_count{{{labels}}}"] == 1
    assert seen[f"rpc_client_call_duration_seconds_count{{{labels}}}"] == 1
    assert seen['winnow_shed_total{reason="replica_full"}'] == 1
    assert seen[f'winnow_active_calls{{rpc_method="{METHOD}",rpc_system_name="grpc"}}'] == 0
