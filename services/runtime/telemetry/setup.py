"""Builds the process's tracer and meter from OTEL_* and the settings, and shuts them down within bounded time.

Traces are sent by OTLP if OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) is set or OTEL_TRACES_EXPORTER contains
"otlp"; metrics only if OTEL_METRICS_EXPORTER contains it. The Prometheus endpoint depends on METRICS_LISTEN only.
`environment` checks every OTEL_* variable; the SDK itself then reads endpoints, headers, certificates, resource
attributes and batch sizes.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_OFF, DEFAULT_ON
from prometheus_client import CollectorRegistry

from services.runtime.telemetry import environment
from services.runtime.telemetry.endpoint import Endpoint
from services.runtime.telemetry.environment import OtelSettings
from services.runtime.telemetry.exporters import metric_exporter, span_exporter
from services.runtime.telemetry.names import SCOPE, Instrument
from services.runtime.telemetry.propagation import Propagation

log = logging.getLogger("winnow.telemetry")

_SHUTDOWN_SECONDS = 5.0

# Returns values with their attributes. Called on collection, on another thread.
Read: TypeAlias = "Callable[[], Iterable[tuple[float, Mapping[str, str]]]]"


class Telemetry:
    """Tracer, meter and their shutdown. Created by `start`; without arguments, it exports nothing."""

    def __init__(
        self,
        tracers: trace.TracerProvider | None = None,
        meters: metrics.MeterProvider | None = None,
        propagation: Propagation | None = None,
    ) -> None:
        self.propagation = propagation or Propagation()
        self._tracers = tracers or trace.NoOpTracerProvider()
        self._meters = meters or metrics.NoOpMeterProvider()
        self.tracer = self._tracers.get_tracer(SCOPE)
        self.meter = self._meters.get_meter(SCOPE)
        self.metrics_address: str | None = None
        self._before: list[Callable[[], object]] = []
        self._close: list[Callable[[], object]] = []

    @classmethod
    def start(
        cls, service: str, metrics_listen: str | None = None, environ: Mapping[str, str] = os.environ
    ) -> Telemetry:
        """Starts the providers and the Prometheus endpoint. `service` is the default of OTEL_SERVICE_NAME.

        Ends the process if a variable is invalid or the metrics port is in use.
        """
        settings = environment.read(environ, prometheus=metrics_listen is not None)
        if settings.disabled:
            return cls(propagation=settings.propagation)
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        registry = CollectorRegistry()
        meters = MeterProvider(_readers(registry, metrics_listen, settings), resource, shutdown_on_exit=False)
        tracers = _tracers(resource, settings)
        telemetry = cls(tracers, meters, settings.propagation)
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
        """A sum that only increases."""
        return self.meter.create_counter(instrument.name, instrument.unit, instrument.description)

    def totals(self, instrument: Instrument, read: Read) -> None:
        """Sums that only increase, read on collection. For sums that change too often for a counter."""
        self.meter.create_observable_counter(
            instrument.name, [_observing(read)], instrument.unit, instrument.description
        )

    def levels(self, instrument: Instrument, read: Read) -> None:
        """Sums that increase and decrease, read on collection."""
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
        """A value read on collection, on another thread. None is not reported."""

        def observe(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
            value = read()
            return () if value is None else (metrics.Observation(value),)

        self.meter.create_observable_gauge(instrument.name, [observe], instrument.unit, instrument.description)

    def before_shutdown(self, step: Callable[[], object]) -> None:
        """Registers `step` to be called at the beginning of `shutdown`."""
        self._before.append(step)

    def shutdown(self) -> None:
        """Exports what is left and closes the endpoint, within a few seconds even if the collector is unavailable."""

        def close() -> None:
            for step in (*self._before, *self._close):
                try:
                    step()
                except Exception:
                    log.warning("telemetry did not close cleanly", exc_info=True)

        # The timeouts of the exporters add up to half a minute, which is longer than a pod's grace period allows.
        thread = threading.Thread(target=close, name="telemetry-shutdown", daemon=True)
        thread.start()
        thread.join(_SHUTDOWN_SECONDS)


def _tracers(resource: Resource, settings: OtelSettings) -> TracerProvider:
    sent = settings.traces_otlp is not None or settings.traces_console
    # If spans are not exported, only ids for the log and the caller's sampling decision are needed.
    sampler = settings.sampler or (DEFAULT_ON if sent else DEFAULT_OFF)
    tracers = TracerProvider(sampler, resource, shutdown_on_exit=False)
    if settings.traces_otlp is not None:
        tracers.add_span_processor(BatchSpanProcessor(span_exporter(settings.traces_otlp)))
    if settings.traces_console:
        tracers.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=sys.stdout)))
    return tracers


def _observing(read: Read) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
    return lambda _: [metrics.Observation(value, attributes) for value, attributes in read()]


def _readers(registry: CollectorRegistry, listen: str | None, settings: OtelSettings) -> list[MetricReader]:
    readers: list[MetricReader] = []
    if listen is not None:
        readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=registry))
    if settings.metrics_otlp is not None:
        readers.append(PeriodicExportingMetricReader(metric_exporter(settings.metrics_otlp)))
    if settings.metrics_console:
        readers.append(PeriodicExportingMetricReader(ConsoleMetricExporter(out=sys.stdout)))
    return readers
