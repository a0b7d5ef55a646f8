"""OTLP exporters by protocol. Each is imported only if it is asked for: they cost tens of megabytes of memory."""

from __future__ import annotations

import grpc
from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from services.runtime.telemetry.environment import Otlp

# The exporter over gRPC refuses "none", which the specification allows; the one over HTTP knows all three.
_GRPC_COMPRESSION = {"none": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip}


def span_exporter(otlp: Otlp) -> SpanExporter:
    """Sends spans to OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or to OTEL_EXPORTER_OTLP_ENDPOINT."""
    if otlp.protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        return OverHttp()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

    return OverGrpc(compression=_GRPC_COMPRESSION[otlp.compression])


def metric_exporter(otlp: Otlp) -> MetricExporter:
    """The same for metrics."""
    if otlp.protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as OverHttp

        return OverHttp()
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as OverGrpc

    return OverGrpc(compression=_GRPC_COMPRESSION[otlp.compression])
