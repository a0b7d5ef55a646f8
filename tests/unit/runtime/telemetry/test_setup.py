import asyncio
import json
import logging
import threading
import time
import urllib.request

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from services.runtime.channel import ChannelSettings, channel
from services.runtime.errors import InvalidField, ReplicaFull
from services.runtime.telemetry import logs, names
from services.runtime.telemetry.setup import Telemetry
from tests.support.otlp import attributes
from tests.support.scripted import SERVICE, Scripted
from tests.support.serving import serving, told
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

METHOD = f"{SERVICE}/Embed"
STREAM = f"{SERVICE}/EmbedStream"


@pytest.fixture
async def telemetry(collected):
    made = Telemetry.start("winnow-test", "127.0.0.1:0")
    yield made
    await asyncio.to_thread(made.shutdown)  # it sends to a receiver on this very loop


async def scraped(telemetry: Telemetry) -> dict[str, float]:
    def read() -> str:
        with urllib.request.urlopen(f"http://{telemetry.metrics_address}/metrics", timeout=10) as response:
            return response.read().decode()

    lines = (await asyncio.to_thread(read)).splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}


async def test_one_trace_from_client_to_server(telemetry, collected) -> None:
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
        told = attributes(span.attributes)
        assert (told[names.RPC_SYSTEM], told[names.RPC_METHOD], told[names.RPC_STATUS]) == ("grpc", METHOD, "OK")
        assert names.ERROR_TYPE not in told
    host, port = served.address.split(":")
    assert attributes(client.attributes)[names.SERVER_ADDRESS] == host
    assert attributes(client.attributes)[names.SERVER_PORT] == int(port)


async def test_a_stream_is_one_span_on_either_side(telemetry, collected) -> None:
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


async def refuse(request, context):
    raise InvalidField("texts", "is wrong")


async def break_down(request, context):
    raise ValueError("a private letter")


async def overflow(request, context):
    raise ReplicaFull(0.01)


@pytest.mark.parametrize(
    ("answer", "code", "reason", "server_error"),
    [
        (refuse, "INVALID_ARGUMENT", "INVALID_FIELD", False),
        (overflow, "UNAVAILABLE", "REPLICA_FULL", True),
        (break_down, "INTERNAL", "INTERNAL", True),
    ],
)
async def test_a_failed_calls_spans(telemetry, collected, caplog, answer, code, reason, server_error) -> None:
    async with serving(Scripted(answer), telemetry=telemetry) as served:
        async with channel(served.address, telemetry, ChannelSettings(attempts=1)) as to:
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
        assert incident in told(error.value).status.message
        assert incident in caplog.text


async def test_a_call_that_its_caller_cancels_has_its_spans(telemetry, collected) -> None:
    began = asyncio.Event()

    async def answer(request, context):
        began.set()
        await asyncio.Event().wait()

    async with serving(Scripted(answer), telemetry=telemetry) as served, channel(served.address, telemetry) as to:
        call = asyncio.ensure_future(_embed(to))
        await began.wait()
        call.cancel()
        spans = await collected.wait_for(lambda spans: len(spans) == 2)
    assert {attributes(span.attributes)[names.RPC_STATUS] for span in spans} == {"CANCELLED"}


async def test_a_call_past_its_deadline_has_its_spans(telemetry, collected) -> None:
    async def answer(request, context):
        await asyncio.Event().wait()

    async with serving(Scripted(answer), telemetry=telemetry) as served, channel(served.address, telemetry) as to:
        with pytest.raises(grpc.aio.AioRpcError):
            await _embed(to, timeout=0.2)
        spans = await collected.wait_for(lambda spans: len(spans) == 2)
    assert {attributes(span.attributes)[names.RPC_STATUS] for span in spans} == {"DEADLINE_EXCEEDED"}


async def _embed(to, timeout=20):
    return await embed_pb2_grpc.EmbedServiceStub(to).Embed(embed_pb2.EmbedRequest(), timeout=timeout)


async def test_the_prometheus_endpoint_counts_calls_and_refusals(telemetry) -> None:
    async with serving(Scripted(overflow), telemetry=telemetry) as served:
        async with channel(served.address, telemetry, ChannelSettings(attempts=1)) as to:
            with pytest.raises(grpc.aio.AioRpcError):
                await _embed(to)
        seen = await scraped(telemetry)
    labels = f'error_type="UNAVAILABLE",rpc_method="{METHOD}",rpc_status_code="UNAVAILABLE",rpc_system_name="grpc"'
    assert seen[f"rpc_server_call_duration_seconds_count{{{labels}}}"] == 1
    assert seen[f"rpc_client_call_duration_seconds_count{{{labels}}}"] == 1
    assert seen['winnow_shed_total{reason="replica_full"}'] == 1
    assert seen[f'winnow_active_calls{{rpc_method="{METHOD}",rpc_system_name="grpc"}}'] == 0


async def test_names_are_the_same_in_prometheus(telemetry) -> None:
    telemetry.gauge(names.QUEUE_TOKENS, lambda: 12)
    telemetry.gauge(names.QUEUE_SECONDS, lambda: 0.5)
    telemetry.histogram(names.BATCH_TOKENS).record(100)
    telemetry.histogram(names.UNIQUE_TOKEN_RATIO).record(0.5)
    telemetry.counter(names.CACHE_HITS).add(1)
    telemetry.counter(names.CACHE_MISSES).add(1)
    telemetry.counter(names.CACHE_ERRORS).add(1)
    telemetry.counter(names.DEGRADED_ANSWERS).add(1, {names.STAGE: "rerank", names.SHED_REASON: "deadline"})
    seen = await scraped(telemetry)
    assert seen["winnow_queue_tokens"] == 12
    assert seen["winnow_queue_seconds"] == 0.5
    assert seen['winnow_batch_tokens_bucket{le="128.0"}'] == 1
    assert seen['winnow_batch_tokens_bucket{le="64.0"}'] == 0
    assert seen['winnow_unique_token_ratio_bucket{le="0.5"}'] == 1
    for name in ("winnow_cache_hits_total", "winnow_cache_misses_total", "winnow_cache_errors_total"):
        assert seen[name] == 1
    assert seen['winnow_degraded_total{reason="deadline",stage="rerank"}'] == 1


async def test_metrics_leave_by_otlp_where_asked(collected) -> None:
    made = Telemetry.start("winnow-test", None, {"OTEL_METRICS_EXPORTER": "otlp"})
    made.counter(names.CACHE_HITS).add(3)
    await asyncio.to_thread(made.shutdown)
    (point,) = collected.metrics["winnow_cache_hits"].sum.data_points
    assert point.as_int == 3
    assert made.metrics_address is None


def test_a_metrics_port_that_is_taken_ends_the_process(capsys) -> None:
    first = Telemetry.start("winnow-test", "127.0.0.1:0")
    with pytest.raises(SystemExit, match=f"cannot serve metrics on {first.metrics_address}"):
        Telemetry.start("winnow-test", first.metrics_address)
    first.shutdown()


def test_the_specifications_switches_are_honoured(monkeypatch) -> None:
    assert Telemetry.start("winnow-test", "127.0.0.1:0", {"OTEL_SDK_DISABLED": "true"}).metrics_address is None
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,deployment.environment.name=test")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    made = Telemetry.start("winnow-test")
    span = made.tracer.start_span("x")
    assert (
        dict(span.resource.attributes).items()
        >= {
            "service.name": "mine",
            "deployment.environment.name": "test",
        }.items()
    )
    made.shutdown()


def test_without_an_exporter_nothing_is_recorded_but_ids_and_the_callers_sampling_go_on() -> None:
    made = Telemetry.start("winnow-test", None, {})
    own = made.tracer.start_span("x")
    assert own.get_span_context().is_valid
    assert not own.is_recording()
    theirs = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    child = made.tracer.start_span("x", trace.set_span_in_context(NonRecordingSpan(theirs)))
    assert child.get_span_context().trace_id == 1
    assert child.get_span_context().trace_flags.sampled
    made.shutdown()


def test_a_collector_that_is_gone_does_not_hold_up_the_end(monkeypatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    made = Telemetry.start("winnow-test")
    made.tracer.start_span("x").end()
    started = time.monotonic()
    made.shutdown()
    assert time.monotonic() - started < 10
    # What it left behind retries with random pauses, which Hypothesis would take for its own test's.
    for thread in threading.enumerate():
        if thread.name == "telemetry-shutdown":
            thread.join(30)


@pytest.mark.parametrize("form", ["plain", "json"])
def test_log_lines_carry_the_trace(form) -> None:
    made = Telemetry.start("winnow-test")
    formatter = logs.JsonFormatter() if form == "json" else logs.PlainFormatter()
    record = logging.makeLogRecord(
        {"name": "a", "levelname": "INFO", "msg": "said %s", "args": ("it",), "address": "x"}
    )
    with made.tracer.start_as_current_span("x") as span:
        line = formatter.format(record)
    trace = f"{span.get_span_context().trace_id:032x}"
    made.shutdown()
    if form == "json":
        fields = json.loads(line)
        assert (fields["message"], fields["trace_id"], fields["address"]) == ("said it", trace, "x")
    else:
        assert line.endswith(f"INFO a: said it trace={trace}")
    assert "trace" not in formatter.format(record)


@pytest.mark.parametrize(
    "value", ["", "00", "00-xyz-1-01", "ff-" + "a" * 500, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"]
)
async def test_a_malformed_trace_context_is_ignored(value) -> None:
    async with serving(Scripted()) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        metadata = (
            ("traceparent", value),
            ("tracestate", value),
            ("traceparent-bin", b"\xff\x00"),
            ("baggage", "=;,="),
        )
        await stub.Embed(embed_pb2.EmbedRequest(), metadata=metadata, timeout=30)
