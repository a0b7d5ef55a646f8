"""OTLP exporters by protocol. Each is imported only if it is used, because it needs tens of megabytes of memory."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

import grpc
from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from services.runtime.telemetry.environment import Otlp

# The gRPC exporter does not accept "none", which the specification allows. The HTTP exporter accepts all three.
_GRPC_COMPRESSION = {"none": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip}


def span_exporter(otlp: Otlp) -> SpanExporter:
    """Sends spans to OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or to OTEL_EXPORTER_OTLP_ENDPOINT."""
    if otlp.protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        return OverHttp()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

    return OverGrpc(compression=_GRPC_COMPRESSION[otlp.compression], channel_options=_options("TRACES"))


def metric_exporter(otlp: Otlp) -> MetricExporter:
    """Sends metrics to OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, or to OTEL_EXPORTER_OTLP_ENDPOINT."""
    if otlp.protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as OverHttp

        return OverHttp()
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as OverGrpc

    return OverGrpc(compression=_GRPC_COMPRESSION[otlp.compression], channel_options=_options("METRICS"))


def _options(signal: str) -> Any:  # the exporter's annotation allows only strings
    """Bypasses the proxy if the collector is on this machine or in NO_PROXY, because gRPC reads only no_proxy."""
    name = "OTEL_EXPORTER_OTLP_ENDPOINT"
    endpoint = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or os.environ.get(name, "")
    host = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").hostname or "localhost"
    direct = _is_loopback(host) or proxy_bypass(host)
    return (("grpc.enable_http_proxy", 0),) if direct else ()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
