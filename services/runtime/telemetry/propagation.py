"""Carries trace context and baggage from process to process in gRPC metadata, in the formats of OTEL_PROPAGATORS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points

from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_GROUP = "opentelemetry_propagator"
# The specification's names that come in packages of their own.
_PACKAGES = {
    "b3": "opentelemetry-propagator-b3",
    "b3multi": "opentelemetry-propagator-b3",
    "jaeger": "opentelemetry-propagator-jaeger",
    "ottrace": "opentelemetry-propagator-ot-trace",
    "xray": "opentelemetry-propagator-aws-xray",
}


class _Lowercase(Getter[Mapping[str, str]]):
    """gRPC writes every key in lower case, some formats do not."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        value = carrier.get(key.lower())
        return None if value is None else [value]

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


_GETTER = _Lowercase()


class Propagation:
    """Both directions of one process; by default the W3C's trace context and baggage."""

    def __init__(self, propagator: TextMapPropagator | None = None) -> None:
        self._propagator = propagator or CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])

    def extract(self, metadata: Iterable[tuple[str, str | bytes]]) -> Context:
        """What a caller sent, as a context without anything else."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        return self._propagator.extract(carrier, Context(), _GETTER)

    def inject(self, context: Context) -> dict[str, str]:
        """What a callee is to be sent."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context)
        return {key.lower(): value for key, value in carrier.items()}


def propagation(names: str) -> Propagation:
    """By the names of OTEL_PROPAGATORS, with commas between. ValueError that says what is allowed."""
    words = list(dict.fromkeys(word.strip().lower() for word in names.split(",") if word.strip()))
    if words == ["none"]:
        return Propagation(CompositePropagator([]))
    if "none" in words:
        raise ValueError('"none" stands alone')
    installed = {point.name: point for point in entry_points(group=_GROUP)}
    for word in words:
        if word not in installed:
            hint = f"install {_PACKAGES[word]}, or set" if word in _PACKAGES else "allowed:"
            raise ValueError(f'"{word}" is not supported; {hint} {", ".join((*sorted(installed), "none"))}')
    return Propagation(CompositePropagator([installed[word].load()() for word in words]))
