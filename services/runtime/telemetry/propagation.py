"""Propagates trace context and baggage in gRPC metadata, in the formats of OTEL_PROPAGATORS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points

from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_GROUP = "opentelemetry_propagator"
# Propagators of the specification that are in separate packages.
_PACKAGES = {
    "b3": "opentelemetry-propagator-b3",
    "b3multi": "opentelemetry-propagator-b3",
    "jaeger": "opentelemetry-propagator-jaeger",
    "ottrace": "opentelemetry-propagator-ot-trace",
    "xray": "opentelemetry-propagator-aws-xray",
}


class _Lowercase(Getter[Mapping[str, str]]):
    """Reads keys in lower case: gRPC converts all metadata keys, but some formats have upper-case ones."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        value = carrier.get(key.lower())
        return None if value is None else [value]

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


_GETTER = _Lowercase()


class Propagation:
    """Extracts and injects context. The default formats are W3C trace context and baggage."""

    def __init__(self, propagator: TextMapPropagator | None = None) -> None:
        self._propagator = propagator or CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])

    def extract(self, metadata: Iterable[tuple[str, str | bytes]]) -> Context:
        """The context that a caller sent, and nothing else."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        return self._propagator.extract(carrier, Context(), _GETTER)

    def inject(self, context: Context) -> dict[str, str]:
        """The metadata to send with a call."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context)
        return {key.lower(): value for key, value in carrier.items()}


def propagation(names: str) -> Propagation:
    """The propagators named in OTEL_PROPAGATORS, separated by commas. The ValueError says what is allowed."""
    words = list(dict.fromkeys(word.strip().lower() for word in names.split(",") if word.strip()))
    if words == ["none"]:
        return Propagation(CompositePropagator([]))
    if "none" in words:
        raise ValueError('"none" cannot be combined with other values')
    installed = {point.name: point for point in entry_points(group=_GROUP)}
    for word in words:
        if word not in installed:
            hint = f"install {_PACKAGES[word]}, or set" if word in _PACKAGES else "allowed:"
            raise ValueError(f'"{word}" is not supported; {hint} {", ".join((*sorted(installed), "none"))}')
    return Propagation(CompositePropagator([installed[word].load()() for word in words]))
