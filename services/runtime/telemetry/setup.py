"""Builds the process's tracer and meter from OTEL_* and the settings, and takes them down within bounded time.

Traces leave by OTLP only where OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) is set; metrics by OTLP only where
OTEL_METRICS_EXPORTER names "otlp". The Prometheus endpoint is on by default. OTEL_SDK_DISABLED and OTEL_*_EXPORTER=none
are honoured; samplers, resource attributes, headers, certificates and batch sizes are the SDK's own business.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from prometheus_client import CollectorRegistry

from services.runtime.telemetry.endpoint import Endpoint
from services.runtime.telemetry.names import SCOPE, Instrument

log = logging.getLogger("winnow.telemetry")

_SHUTDOWN_SECONDS = 5.0

# Values, each with its attributes; called when they are collected, from another thread.
Read: TypeAlias = "Callable[[], Iterable[tuple[float, Mapping[str, str]]]]"


class Telemetry:
    """Tracer, meter and their shutdown. Build it with `start`, or bare for tests and tools that report nothing."""

    def __init__(
        self, tracers: trace.TracerProvider | None = None, meters: metrics.MeterProvider | None = None
    ) -> None:
        self._tracers = tracers or trace.NoOpTracerProvider()
        self._meters = meters or metrics.NoOpMeterProvider()
        self.tracer = self._tracers.get_tracer(SCOPE)
        self.meter = self._meters.get_meter(SCOPE)
        self.metrics_address: str | None = None
        self._close: list[Callable[[], object]] = []

    @classmethod
    def start(
        cls, service: str, metrics_listen: str | None = None, environ: Mapping[str, str] = os.environ
    ) -> Telemetry:
        """Providers and the Prometheus endpoint. `service` is the default of OTEL_SERVICE_NAME.

        Ends the process where the metrics port is taken.
        """
        if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return cls()
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        registry = CollectorRegistry()
        meters = MeterProvider(_readers(registry, metrics_listen, environ), resource, shutdown_on_exit=False)
        tracers = _tracers(resource, environ)
        telemetry = cls(tracers, meters)
        if metrics_listen is not None:
            host, _, port = metrics_listen.rpartition(":")
            try:
                endpoint = Endpoint(host.strip("[]"), int(port), registry)
            except OSError as error:
                raise SystemExit(f"cannot serve metrics on {metrics_listen}: {error.strerror}") from None
            telemetry.metrics_address = f"{host}:{endpoint.port}"
            telemetry._close.append(endpoint.close)
        telemetry._close += [tracers.shutdown, meters.shutdown]
        return telemetry

    def counter(self, instrument: Instrument) -> metrics.Counter:
        """A sum that only grows."""
        return self.meter.create_counter(instrument.name, instrument.unit, instrument.description)

    def totals(self, instrument: Instrument, read: Read) -> None:
        """Sums that only grow, for where a counter would be bumped too often."""
        self.meter.create_observable_counter(
            instrument.name, [_observing(read)], instrument.unit, instrument.description
        )

    def levels(self, instrument: Instrument, read: Read) -> None:
        """Sums that grow and shrink."""
        self.meter.create_observable_up_down_counter(
            instrument.name, [_observing(read)], instrument.unit, instrument.description
        )

    def histogram(self, instrument: Instrument) -> metrics.Histogram:
        """A distribution over the instrument's buckets."""
        return self.meter.create_histogram(
            instrument.name, instrument.unit, instrument.description,
            explicit_bucket_boundaries_advisory=instrument.buckets,
        )  # fmt: skip

    def gauge(self, instrument: Instrument, read: Callable[[], float | None]) -> None:
        """A value read when it is collected, from another thread; None is not reported."""

        def observe(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
            value = read()
            return () if value is None else (metrics.Observation(value),)

        self.meter.create_observable_gauge(instrument.name, [observe], instrument.unit, instrument.description)

    def shutdown(self) -> None:
        """Sends what is left and closes the endpoint, within a few seconds even where the collector is gone."""

        def close() -> None:
            for step in self._close:
                try:
                    step()
                except Exception:
                    log.warning("telemetry did not close cleanly", exc_info=True)

        # The exporters' own timeouts add up to half a minute, longer than a pod has.
        thread = threading.Thread(target=close, name="telemetry-shutdown", daemon=True)
        thread.start()
        thread.join(_SHUTDOWN_SECONDS)


def _exporters(environ: Mapping[str, str], signal: str, default: str) -> set[str]:
    return {name.strip() for name in environ.get(f"OTEL_{signal}_EXPORTER", default).split(",")}


def _has_endpoint(environ: Mapping[str, str], signal: str) -> bool:
    return bool(environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))


def _tracers(resource: Resource, environ: Mapping[str, str]) -> TracerProvider:
    if "otlp" not in _exporters(environ, "TRACES", "otlp") or not _has_endpoint(environ, "TRACES"):
        # Ids for the logs, and the caller's own sampling handed on; but nothing recorded that nobody receives.
        sampler = None if OTEL_TRACES_SAMPLER in environ else ParentBased(ALWAYS_OFF)
        return TracerProvider(sampler, resource, shutdown_on_exit=False)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return tracers


def _observing(read: Read) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
    return lambda _: [metrics.Observation(value, attributes) for value, attributes in read()]


def _readers(registry: CollectorRegistry, listen: str | None, environ: Mapping[str, str]) -> list[MetricReader]:
    readers: list[MetricReader] = []
    if listen is not None:
        readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=registry))
    if "otlp" in _exporters(environ, "METRICS", "none"):
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    return readers


def span_context_of(context: Any = None) -> trace.SpanContext | None:
    """The current span's context where it is sampled: what a batch span may link to."""
    span = trace.get_current_span(context).get_span_context()
    return span if span.is_valid and span.trace_flags.sampled else None
