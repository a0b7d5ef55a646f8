"""Validates the OTEL_* variables before the SDK reads them.

The SDK replaces invalid values by defaults, some of them silently. Here, an invalid variable ends the process with an
error line for each, and a variable without effect in this process is logged. Values that may be secret are not printed.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)

from services.runtime.telemetry.propagation import Propagation, propagation

log = logging.getLogger("winnow.telemetry")

# Returns what is wrong with a value, or None.
Check = Callable[[str], str | None]

_SAMPLERS: dict[str, Callable[[float], Sampler]] = {
    "always_on": lambda _: ALWAYS_ON,
    "always_off": lambda _: ALWAYS_OFF,
    "traceidratio": TraceIdRatioBased,
    "parentbased_always_on": lambda _: DEFAULT_ON,
    "parentbased_always_off": lambda _: DEFAULT_OFF,
    "parentbased_traceidratio": ParentBasedTraceIdRatio,
}
_PROTOCOLS = ("grpc", "http/protobuf")
_SIGNALS = ("TRACES", "METRICS")
# Not read by the SDK: the OpenTelemetry operator and our manifests build OTEL_RESOURCE_ATTRIBUTES from them.
_PARTS = re.compile(r"OTEL_RESOURCE_ATTRIBUTES_\w+|OTEL_(NODE|POD)_IP")
_HEADER_NAME = re.compile(r"[0-9a-zA-Z_.-]+(?<!-bin)")
_PRINTABLE = re.compile(r"[ -~]*")
_STRAY_PERCENT = re.compile(r"%(?![0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Otlp:
    """How a signal is exported by OTLP. The exporter itself reads endpoint, headers, certificates and timeout."""

    protocol: Literal["grpc", "http/protobuf"]
    compression: Literal["none", "gzip", "deflate"]


@dataclass(frozen=True, slots=True)
class OtelSettings:
    """The settings in OTEL_*. The `otlp` of a signal is None if it is not exported by OTLP."""

    disabled: bool
    propagation: Propagation
    sampler: Sampler | None = None
    traces_otlp: Otlp | None = None
    traces_console: bool = False
    metrics_otlp: Otlp | None = None
    metrics_console: bool = False


def read(environ: Mapping[str, str], prometheus: bool) -> OtelSettings:
    """The settings. If a variable is invalid, ends the process with status 2 and a line on stderr for each.

    `prometheus`: whether the process has a Prometheus endpoint.
    """
    reader = _Reader(environ)
    settings = reader.settings(prometheus)
    if reader.wrong:
        print("\n".join(f"wrong setting: {line}" for line in reader.wrong), file=sys.stderr, flush=True)
        raise SystemExit(2)
    for name in reader.without_effect():
        log.warning("%s has no effect in this process", name)
    return settings


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = {name: value for name, value in environ.items() if name.startswith("OTEL_")}
        self._known = set(_OBEYED)
        self.wrong: list[str] = []

    def settings(self, prometheus: bool) -> OtelSettings:
        disabled = self._enum("OTEL_SDK_DISABLED", ("true", "false"), "false") == "true"
        found = Propagation()
        try:
            found = propagation(self._text("OTEL_PROPAGATORS") or "tracecontext,baggage")
        except ValueError as error:
            self._refuse("OTEL_PROPAGATORS", str(error))
        if disabled:  # by the specification, only OTEL_PROPAGATORS has an effect then
            return OtelSettings(True, found)
        for name, check in _CHECKS.items():
            self._check(name, check)
        self._batches()
        traces = self._exporters("TRACES", ("otlp", "console"))
        metrics = self._exporters("METRICS", ("otlp", "console", "prometheus"))
        self._exporters("LOGS", (), "; the log is written to stderr, as LOG_FORMAT says")
        if "prometheus" in metrics and not prometheus:
            self._refuse("OTEL_METRICS_EXPORTER", '"prometheus" needs an address in the setting METRICS_LISTEN')
        endpoint = any(self._environ.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT", "").strip() for part in ("", "TRACES_"))
        # If the exporter is unset, traces are sent if there is an endpoint. The specification would use localhost.
        sends = "otlp" in traces or (endpoint and not self._text("OTEL_TRACES_EXPORTER"))
        return OtelSettings(
            False,
            found,
            self._sampler(),
            self._otlp("TRACES", sends),
            "console" in traces,
            self._otlp("METRICS", "otlp" in metrics),
            "console" in metrics,
        )

    def without_effect(self) -> list[str]:
        return sorted(n for n in self._environ if n not in self._known and not _PARTS.fullmatch(n))

    def _text(self, name: str) -> str:
        """The value of a variable. An empty variable counts as unset."""
        self._known.add(name)
        return self._environ.get(name, "").strip()

    def _refuse(self, name: str, why: str) -> None:
        line = f"{name}: {why}"
        if line not in self.wrong:  # a variable for all signals is checked for each
            self.wrong.append(line)

    def _enum(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self._text(name).lower() or default
        if value not in allowed:
            self._refuse(name, f'"{value}" is not supported; allowed: {", ".join(allowed)}')
            return default
        return value

    def _exporters(self, signal: str, allowed: tuple[str, ...], why: str = "") -> set[str]:
        name = f"OTEL_{signal}_EXPORTER"
        asked = {word.strip().lower() for word in self._text(name).split(",") if word.strip()}
        if asked - {*allowed, "none"}:
            strange = ", ".join(f'"{word}"' for word in sorted(asked - {*allowed, "none"}))
            self._refuse(name, f"{strange} is not supported; allowed: {', '.join((*allowed, 'none'))}{why}")
        if "none" in asked and len(asked) > 1:
            self._refuse(name, '"none" cannot be combined with other values')
        return asked - {"none"}

    def _sampler(self) -> Sampler | None:
        name = self._enum("OTEL_TRACES_SAMPLER", tuple(_SAMPLERS), "") if self._text("OTEL_TRACES_SAMPLER") else ""
        if not name.endswith("traceidratio"):
            return _SAMPLERS[name](1.0) if name else None  # the argument has no effect, which is logged if it is set
        argument = self._text("OTEL_TRACES_SAMPLER_ARG") or "1"
        try:
            return _SAMPLERS[name](float(argument))
        except ValueError:
            self._refuse("OTEL_TRACES_SAMPLER_ARG", f'"{argument}" is not a ratio; allowed: a number from 0 to 1')
            return None

    def _otlp(self, signal: str, wanted: bool) -> Otlp | None:
        protocol = self._of_signal(signal, "PROTOCOL", _PROTOCOLS, "grpc")
        compressions = ("none", "gzip") if protocol == "grpc" else ("none", "gzip", "deflate")
        compression = self._of_signal(signal, "COMPRESSION", compressions, "none")
        if not wanted:
            return None
        name = f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"
        if not self._environ.get(name):
            name = "OTEL_EXPORTER_OTLP_ENDPOINT"
        endpoint = self._environ.get(name)
        if endpoint is not None and (why := _endpoint(endpoint, protocol)):
            self._refuse(name, why)
        return Otlp(protocol, compression)  # type: ignore[arg-type]  # _of_signal gives one of those allowed

    def _of_signal(self, signal: str, what: str, allowed: tuple[str, ...], default: str) -> str:
        """The variable of the signal, or else the one for all signals."""
        for name in (f"OTEL_EXPORTER_OTLP_{signal}_{what}", f"OTEL_EXPORTER_OTLP_{what}"):
            if self._text(name):
                return self._enum(name, allowed, default)
        return default

    def _check(self, name: str, check: Check) -> None:
        self._known.add(name)
        value = self._environ.get(name)
        if value is not None and (why := check(value)):
            self._refuse(name, why)

    def _batches(self) -> None:
        sizes = [
            self._environ.get(f"OTEL_BSP_{n}", d)
            for n, d in (("MAX_EXPORT_BATCH_SIZE", "512"), ("MAX_QUEUE_SIZE", "2048"))
        ]
        if all(size.strip().isdigit() for size in sizes) and int(sizes[0]) > int(sizes[1]):
            self._refuse("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", f"must be at most OTEL_BSP_MAX_QUEUE_SIZE, {sizes[1]}")


def _whole(least: int) -> Check:
    def check(value: str) -> str | None:
        good = re.fullmatch(r"\s*\d+\s*", value) and int(value) >= least
        return None if good else f'"{value}" is not supported; allowed: a whole number from {least}'

    return check


def _limit(value: str) -> str | None:
    return None if not value.strip() else _whole(0)(value)


def _positive(value: str) -> str | None:
    try:
        good = 0 < float(value) < float("inf")
    except ValueError:
        good = False
    return None if good else f'"{value}" is not supported; allowed: a number greater than 0'


def _one_of(*allowed: str, any_case: bool = False) -> Check:
    def check(value: str) -> str | None:
        good = (value.lower() if any_case else value) in allowed
        return None if good else f'"{value}" is not supported; allowed: {", ".join(allowed)}'

    return check


def _file(value: str) -> str | None:
    if not value:
        return None
    try:
        Path(value).read_bytes()
    except OSError as error:
        return f"cannot read {value}: {error.strerror}"
    return None


def _pairs(text: str) -> Iterator[tuple[int, str, str | None]]:
    for number, item in enumerate(text.split(","), 1) if text.strip() else ():
        name, equals, value = item.partition("=")
        yield number, name.strip(), value.strip() if equals else None


def _attributes(text: str) -> str | None:
    for number, name, value in _pairs(text):
        if not name or value is None:
            return f"item {number} is not KEY=VALUE; allowed: KEY=VALUE,KEY=VALUE, with commas and % as %2C and %25"
        if _decoded(value) is None:
            return f"the value of {name} is not percent-encoded UTF-8"
    return None


def _headers(text: str) -> str | None:
    for number, name, value in _pairs(text):
        if value is None or not _HEADER_NAME.fullmatch(name):
            return f"item {number} is not NAME=VALUE; allowed: NAME=VALUE,NAME=VALUE, with values percent-encoded"
        decoded = _decoded(value)
        if decoded is None or not _PRINTABLE.fullmatch(decoded) or re.search(r'[";\\]', value):
            return f"the value of {name} is not percent-encoded printable ASCII"
    return None


def _decoded(value: str) -> str | None:
    try:
        return None if _STRAY_PERCENT.search(value) else unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        return None


def _endpoint(value: str, protocol: str) -> str | None:
    grpc = protocol == "grpc"
    try:
        url = urlsplit(value)
        if url.scheme in ("http", "https"):
            good = bool(url.hostname) and url.port != 0
        else:
            good = grpc and bool(value) and ("://" not in value or url.scheme == "dns")
    except ValueError:
        good = False
    if good and not re.search(r"\s", value):
        return None
    return (
        f"is not an address for {protocol}; allowed: http://HOST:PORT, https://HOST:PORT{', HOST:PORT' if grpc else ''}"
    )


def _detectors(value: str) -> str | None:
    known = sorted(entry_points(group="opentelemetry_resource_detector").names)
    strange = [n for name in value.split(",") if (n := name.strip()) and n not in (*known, "*")]
    return f'"{strange[0]}" is not installed; allowed: {", ".join(known)}, *' if strange else None


def _otlp_checks() -> Iterator[tuple[str, Check]]:
    for part in ("", *(f"{signal}_" for signal in _SIGNALS)):
        name = f"OTEL_EXPORTER_OTLP_{part}"
        yield f"{name}HEADERS", _headers
        yield f"{name}TIMEOUT", _positive
        yield f"{name}INSECURE", _one_of("true", "false", any_case=True)
        for what in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
            yield f"{name}{what}", _file


_CHECKS: dict[str, Check] = {
    "OTEL_RESOURCE_ATTRIBUTES": _attributes,
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": _detectors,
    "OTEL_CONFIG_FILE": lambda value: "is not supported; set the other OTEL_* variables" if value else None,
    "OTEL_BSP_SCHEDULE_DELAY": _whole(1),
    "OTEL_BSP_EXPORT_TIMEOUT": _whole(1),
    "OTEL_BSP_MAX_QUEUE_SIZE": _whole(1),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": _whole(1),
    "OTEL_METRIC_EXPORT_INTERVAL": _positive,
    "OTEL_METRIC_EXPORT_TIMEOUT": _positive,
    "OTEL_METRICS_EXEMPLAR_FILTER": _one_of("always_on", "always_off", "trace_based"),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": _one_of("cumulative", "delta", "lowmemory", any_case=True),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": _one_of(
        "explicit_bucket_histogram", "base2_exponential_bucket_histogram"
    ),
    "OTEL_ATTRIBUTE_COUNT_LIMIT": _limit,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": _limit,
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": _limit,
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": _limit,
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": _limit,
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": _limit,
    "OTEL_SPAN_EVENT_COUNT_LIMIT": _limit,
    "OTEL_SPAN_LINK_COUNT_LIMIT": _limit,
    **dict(_otlp_checks()),
}
# Checked elsewhere: together with the protocol, or by the SDK itself.
_OBEYED = {
    "OTEL_SERVICE_NAME",
    *(f"OTEL_EXPORTER_OTLP_{part}{what}"
      for part in ("", "TRACES_", "METRICS_") for what in ("ENDPOINT", "PROTOCOL", "COMPRESSION")),
    *(f"OTEL_PYTHON_EXPORTER_OTLP_{way}_{part}CREDENTIAL_PROVIDER"
      for way in ("GRPC", "HTTP") for part in ("", "TRACES_", "METRICS_")),
}  # fmt: skip
