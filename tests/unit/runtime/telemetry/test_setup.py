"""Telemetry of a process: what starts, what is recorded, and how it ends."""

import asyncio
import threading
import time

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from services.runtime.telemetry import names
from services.runtime.telemetry.setup import Telemetry
from tests.support.otlp import Receiver


async def test_metrics_leave_by_otlp_where_asked(collected: Receiver) -> None:
    made = Telemetry.start("winnow-test", None, {"OTEL_METRICS_EXPORTER": "otlp"})
    made.counter(names.CACHE_HITS).add(3)
    await asyncio.to_thread(made.shutdown)
    (point,) = collected.metrics["winnow_cache_hits"].sum.data_points
    assert point.as_int == 3
    assert made.metrics_address is None


def test_a_metrics_port_that_is_taken_ends_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    first = Telemetry.start("winnow-test", "127.0.0.1:0")
    with pytest.raises(SystemExit, match=f"cannot serve metrics on {first.metrics_address}"):
        Telemetry.start("winnow-test", first.metrics_address)
    first.shutdown()


def test_the_specifications_switches_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Telemetry.start("winnow-test", "127.0.0.1:0", {"OTEL_SDK_DISABLED": "true"}).metrics_address is None
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,deployment.environment.name=test")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    made = Telemetry.start("winnow-test")
    span = made.tracer.start_span("x")
    assert isinstance(span, ReadableSpan)
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


def test_a_collector_that_is_gone_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
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
