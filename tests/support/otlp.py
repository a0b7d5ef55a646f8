"""Real OTLP receivers of traces and metrics, over gRPC and over HTTP, in the test's own process."""
# ruff: noqa: N802 - methods are named by the contract

import asyncio
import gzip
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from services.runtime.telemetry.setup import Telemetry


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that arrives, and the last of each metric. `services`: span id → its service.name.

    `resources`: the attributes of each resource that sent spans, in the order of arrival.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}
        self.services: dict[bytes, str] = {}
        self.resources: list[dict[str, Any]] = []
        self.endpoint = ""
        self._arrived = asyncio.Condition()

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        async with self._arrived:
            for resource in request.resource_spans:
                self.resources.append(attributes(resource.resource.attributes))
                service = self.resources[-1].get("service.name", "")
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self.spans.append(span)
                        self.services[span.span_id] = str(service)
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def wait_for(self, ready: Callable[[list[Span]], bool], timeout: float = 20.0) -> list[Span]:
        """All spans, as soon as they satisfy `ready`."""
        async with asyncio.timeout(timeout), self._arrived:
            await self._arrived.wait_for(lambda: ready(self.spans))
            return list(self.spans)

    async def Metrics(
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        async with self._arrived:
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics.update({metric.name: metric for metric in scope.metrics})
            self._arrived.notify_all()
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def environment(self) -> dict[str, str]:
        """What makes a process send its traces here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    """The receiver's other service, whose method has the same name."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def Export(
        self,
        request: metrics_service_pb2.ExportMetricsServiceRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        return await self._receiver.Metrics(request, context)


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver on a free port of loopback."""
    server, servicer = grpc.aio.server(), Receiver()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(servicer), server)
    servicer.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield servicer
    finally:
        await server.stop(0)


def attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes of a span or resource as plain values."""
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


def named(spans: Iterable[Span], name: str) -> list[Span]:
    """Spans with that name."""
    return [span for span in spans if span.name == name]


class HttpReceiver:
    """The same over HTTP, with requests as protobuf; runs in a thread of its own."""

    def __init__(self) -> None:
        self.traces: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.metrics: list[metrics_service_pb2.ExportMetricsServiceRequest] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.arrived = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HttpReceiver":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        with self.arrived:
            self.paths.append(path)
            self.headers.append(headers)
            if path.endswith("/v1/traces"):
                self.traces.append(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            else:
                self.metrics.append(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
            self.arrived.notify_all()

    def spans(self) -> list[Span]:
        scopes = (scope for request in self.traces for part in request.resource_spans for scope in part.scope_spans)
        return [span for scope in scopes for span in scope.spans]


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, receiver: HttpReceiver, *connection: Any) -> None:
        self.receiver = receiver
        super().__init__(*connection)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.receiver.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: str) -> None: ...


async def scraped(telemetry: Telemetry) -> dict[str, float]:
    """What the process's Prometheus endpoint shows."""

    def read() -> str:
        with urllib.request.urlopen(f"http://{telemetry.metrics_address}/metrics", timeout=10) as response:
            return str(response.read(), "utf-8")

    lines = (await asyncio.to_thread(read)).splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}
