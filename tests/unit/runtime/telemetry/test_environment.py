"""Each OTEL_* variable is obeyed, or the process ends at the start with a line that says what is allowed."""

import logging
import os
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from services.runtime.telemetry.environment import read
from services.runtime.telemetry.setup import Telemetry

SECRET = "s3cr3t"


# Variables, what the line says, what it never says.
REFUSED = [
    ({"OTEL_SDK_DISABLED": "yes"}, 'OTEL_SDK_DISABLED: "yes" is not supported; allowed: true, false'),
    ({"OTEL_CONFIG_FILE": "otel.yaml"}, "OTEL_CONFIG_FILE: is not supported"),
    (
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        'OTEL_TRACES_EXPORTER: "zipkin" is not supported; allowed: otlp, console, none',
    ),
    ({"OTEL_TRACES_EXPORTER": "otlp,none"}, 'OTEL_TRACES_EXPORTER: "none" cannot be combined with other values'),
    (
        {"OTEL_METRICS_EXPORTER": "statsd"},
        'OTEL_METRICS_EXPORTER: "statsd" is not supported; allowed: otlp, console, prometheus, none',
    ),
    ({"OTEL_METRICS_EXPORTER": "prometheus"}, 'OTEL_METRICS_EXPORTER: "prometheus" needs an address'),
    ({"OTEL_LOGS_EXPORTER": "otlp"}, 'OTEL_LOGS_EXPORTER: "otlp" is not supported; allowed: none; the log is written'),
    (
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        'OTEL_EXPORTER_OTLP_PROTOCOL: "http/json" is not supported; allowed: grpc, http/protobuf',
    ),
    ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http"}, 'OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "http" is not supported'),
    ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "udp"}, 'OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: "udp" is not supported'),
    (
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"},
        'OTEL_EXPORTER_OTLP_COMPRESSION: "deflate" is not supported; allowed: none, gzip',
    ),
    (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
        "OTEL_EXPORTER_OTLP_ENDPOINT: is not an address for http/protobuf; allowed: http://HOST:PORT, https://HOST:PORT",
    ),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT: is not an address for grpc"),
    (
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "ftp://c:1"},
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: is not an address for grpc",
    ),
    ({"OTEL_EXPORTER_OTLP_HEADERS": SECRET}, "OTEL_EXPORTER_OTLP_HEADERS: item 1 is not NAME=VALUE; allowed:"),
    ({"OTEL_EXPORTER_OTLP_HEADERS": f"a=b,x y={SECRET}"}, "OTEL_EXPORTER_OTLP_HEADERS: item 2 is not NAME=VALUE"),
    ({"OTEL_EXPORTER_OTLP_TRACES_HEADERS": f"key={SECRET}%"}, "OTEL_EXPORTER_OTLP_TRACES_HEADERS: the value of key"),
    ({"OTEL_EXPORTER_OTLP_HEADERS": f"key={SECRET}%0A"}, "OTEL_EXPORTER_OTLP_HEADERS: the value of key"),
    ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, 'OTEL_EXPORTER_OTLP_TIMEOUT: "soon" is not supported; allowed: a number'),
    ({"OTEL_EXPORTER_OTLP_INSECURE": "maybe"}, 'OTEL_EXPORTER_OTLP_INSECURE: "maybe" is not supported; allowed: true'),
    ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere.pem"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: cannot read /nowhere.pem"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,c"}, "OTEL_RESOURCE_ATTRIBUTES: item 2 is not KEY=VALUE; allowed:"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "=b"}, "OTEL_RESOURCE_ATTRIBUTES: item 1 is not KEY=VALUE"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "a=%FF"}, "OTEL_RESOURCE_ATTRIBUTES: the value of a is not percent-encoded UTF-8"),
    (
        {"OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "moon"},
        'OTEL_EXPERIMENTAL_RESOURCE_DETECTORS: "moon" is not installed; allowed: host, os, otel',
    ),
    (
        {"OTEL_TRACES_SAMPLER": "jaeger_remote"},
        'OTEL_TRACES_SAMPLER: "jaeger_remote" is not supported; allowed: always_on, always_off, traceidratio,',
    ),
    (
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
        'OTEL_TRACES_SAMPLER_ARG: "2" is not a ratio; allowed: a number from 0 to 1',
    ),
    (
        {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"},
        'OTEL_TRACES_SAMPLER_ARG: "half" is not a ratio',
    ),
    (
        {"OTEL_PROPAGATORS": "b3"},
        '"b3" is not supported; install opentelemetry-propagator-b3, or set baggage, tracecontext, none',
    ),
    ({"OTEL_PROPAGATORS": "jaeger"}, "install opentelemetry-propagator-jaeger"),
    ({"OTEL_PROPAGATORS": "w3c"}, 'OTEL_PROPAGATORS: "w3c" is not supported; allowed: baggage, tracecontext, none'),
    ({"OTEL_PROPAGATORS": "baggage,none"}, 'OTEL_PROPAGATORS: "none" cannot be combined with other values'),
    ({"OTEL_BSP_SCHEDULE_DELAY": "1s"}, 'OTEL_BSP_SCHEDULE_DELAY: "1s" is not supported; allowed: a whole number'),
    (
        {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4096"},
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE: must be at most OTEL_BSP_MAX_QUEUE_SIZE, 2048",
    ),
    ({"OTEL_METRIC_EXPORT_INTERVAL": "0"}, 'OTEL_METRIC_EXPORT_INTERVAL: "0" is not supported'),
    ({"OTEL_METRICS_EXEMPLAR_FILTER": "all"}, 'OTEL_METRICS_EXEMPLAR_FILTER: "all" is not supported'),
    ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"}, 'OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: "-1" is not supported'),
    (
        {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "both"},
        'OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: "both" is not supported; allowed: cumulative, delta,',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("environ", "line"), REFUSED, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_wrong_value_ends_the_process_by_name(
    environ: dict[str, str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        Telemetry.start("winnow-test", None, environ)
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("wrong setting: OTEL_")
    assert line in said
    assert SECRET not in said


def test_every_wrong_value_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read({"OTEL_PROPAGATORS": "x", "OTEL_TRACES_EXPORTER": "x", "OTEL_EXPORTER_OTLP_PROTOCOL": "x"}, True)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_process_ends_before_it_loads_anything() -> None:
    environ = {"PATH": os.environ["PATH"], "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "GATEWAY_LISTEN": "127.0.0.1:0"}
    done = subprocess.run(
        [sys.executable, "-m", "gateway"], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert 'wrong setting: OTEL_EXPORTER_OTLP_PROTOCOL: "http/json" is not supported' in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_set_to_nothing_is_as_good_as_unset() -> None:
    blank = ("TRACES_EXPORTER", "METRICS_EXPORTER", "LOGS_EXPORTER", "PROPAGATORS", "TRACES_SAMPLER", "SDK_DISABLED")
    names = [*blank, "EXPORTER_OTLP_PROTOCOL", "EXPORTER_OTLP_ENDPOINT", "EXPORTER_OTLP_HEADERS", "RESOURCE_ATTRIBUTES"]
    settings = read({f"OTEL_{name}": "" for name in names}, True)
    assert (settings.traces_otlp, settings.metrics_otlp, settings.disabled) == (None, None, False)


def test_what_the_operator_sets_is_obeyed() -> None:
    environ = {
        "OTEL_SERVICE_NAME": "winnow-gateway",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.observability.svc:4318",
        "OTEL_PROPAGATORS": "tracecontext,baggage",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_RESOURCE_ATTRIBUTES_POD_NAME": "winnow-gateway-0",
        "OTEL_RESOURCE_ATTRIBUTES_NODE_NAME": "node",
        "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=winnow-gateway-0,k8s.node.name=node",
    }
    settings = read(environ, True)
    for otlp in (settings.traces_otlp, settings.metrics_otlp):
        assert otlp is not None
        assert otlp.protocol == "http/protobuf"
    assert isinstance(settings.sampler, TraceIdRatioBased)
    assert settings.sampler.rate == 0.25


def test_traces_go_where_an_endpoint_is_or_where_they_are_asked_for() -> None:
    assert read({}, True).traces_otlp is None
    assert read({"OTEL_TRACES_EXPORTER": "otlp"}, True).traces_otlp is not None
    assert read({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, True).traces_otlp is not None
    assert read({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317", "OTEL_TRACES_EXPORTER": "none"}, True).traces_otlp is None
    assert read(
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_TRACES_EXPORTER": "console"}, True
    ).traces_console


def test_a_variable_without_effect_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    read({"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc", "OTEL_TRACES_SAMPLER_ARG": "0.5", "OTEL_SERVICE_NAME": "x"}, True)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL has no effect in this process",
        "OTEL_TRACES_SAMPLER_ARG has no effect in this process",
    ]
