"""Where traces and metrics go."""

import asyncio

import pytest

from services.runtime.telemetry import exporters, names
from services.runtime.telemetry.setup import Telemetry
from tests.support.otlp import HttpReceiver, Receiver, attributes

SECRET = "s3cr3t"


def test_both_signals_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpReceiver() as to:
        for name, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": to.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20t0ken",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_METRICS_EXPORTER": "otlp",
        }.items():
            monkeypatch.setenv(name, value)
        made = Telemetry.start("winnow-test")
        made.tracer.start_span("over http").end()
        made.counter(names.CACHE_HITS).add(3)
        made.shutdown()
    assert [span.name for span in to.spans()] == ["over http"]
    assert sorted(to.paths) == ["/v1/metrics", "/v1/traces"]
    assert {headers["authorization"] for headers in to.headers} == {"Bearer t0ken"}
    assert {headers["content-encoding"] for headers in to.headers} == {"gzip"}
    (resource,) = to.traces[0].resource_spans
    assert attributes(resource.resource.attributes)["service.name"] == "winnow-test"


async def test_each_signal_may_go_its_own_way(collected: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpReceiver() as to:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{to.endpoint}/v1/traces")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
        made = Telemetry.start("winnow-test")
        made.tracer.start_span("x").end()
        made.counter(names.CACHE_HITS).add(3)
        await asyncio.to_thread(made.shutdown)
    assert len(to.spans()) == 1
    assert (collected.spans, to.metrics) == ([], [])
    assert set(collected.metrics) == {"winnow_cache_hits"}


def test_the_console(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"):
        monkeypatch.setenv(name, "console")
    made = Telemetry.start("winnow-test")
    made.tracer.start_span("to the console").end()
    made.counter(names.CACHE_HITS).add(3)
    made.shutdown()
    said = capfd.readouterr().out
    assert '"name": "to the console"' in said
    assert "winnow_cache_hits" in said


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4317", "localhost:4317", "http://collector.tracing.svc:4317"])
def test_a_proxy_does_not_stand_between_us_and_a_collector_that_no_proxy_excludes(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", ".svc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    assert exporters._options("TRACES") == (("grpc.enable_http_proxy", 0),)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector.example.com:4317")
    assert exporters._options("TRACES") == ()
    assert exporters._options("METRICS") == (("grpc.enable_http_proxy", 0),)
