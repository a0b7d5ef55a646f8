"""The metrics that our processes export, by Prometheus's names, and those that a query reads."""

from __future__ import annotations

import functools
import re
import urllib.request

import yaml

from services.runtime.telemetry import names
from services.runtime.telemetry.names import Instrument
from services.runtime.telemetry.setup import Telemetry
from tests.deploy.manifests import KUBERNETES

_WORDS = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
# A name followed by "(" is a function.
_SELECTOR = re.compile(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\b(?!\s*\()")
_KEYWORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "or", "and", "unless", "offset", "bool"}
_OF_PROMETHEUS = {"up"}
_COUNTERS = {"SHED", "DEGRADED_ANSWERS", "TOKENS", "WORKER_ATTEMPTS", "CALLER_TOKENS", "CALLER_REFUSALS"}


@functools.cache
def exported() -> frozenset[str]:
    """Every name on the Prometheus endpoint of a process that uses each instrument of names.py once."""
    telemetry = Telemetry.start("test", "127.0.0.1:0", {})
    try:
        for constant, instrument in vars(names).items():
            if not isinstance(instrument, Instrument):
                continue
            if instrument.buckets:
                telemetry.histogram(instrument).record(1.0)
            elif constant in _COUNTERS or constant.startswith("CACHE_"):
                telemetry.counter(instrument).add(1)
            elif constant == "SERVER_ACTIVE":
                telemetry.levels(instrument, lambda: [(1.0, {})])
            else:
                telemetry.gauge(instrument, lambda: 1.0)
        return names_in(scraped(telemetry))
    finally:
        telemetry.shutdown()


def scraped(telemetry: Telemetry) -> str:
    """What its Prometheus endpoint says now."""
    with urllib.request.urlopen(f"http://{telemetry.metrics_address}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def names_in(exposition: str) -> frozenset[str]:
    """The names of the series in an answer of a Prometheus endpoint."""
    return frozenset(_WORDS.match(line)[0] for line in exposition.splitlines() if line and line[0] != "#")  # type: ignore[index]


def adapted() -> dict[str, str]:
    """The pods' metrics that prometheus-adapter makes by our rules, with their queries, its templates filled in."""
    rules = yaml.safe_load((KUBERNETES / "components" / "hpa" / "adapter-rules.yaml").read_text())
    found = {}
    for rule in rules:
        (series,) = read(rule["seriesQuery"])
        query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="winnow"')
        found[rule.get("name", {}).get("as", series)] = query
    return found


def read(query: str) -> set[str]:
    """The metrics that a PromQL query reads."""
    bare = re.sub(r'"[^"]*"', '""', query)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\{[^}]*\}", "{}", bare)
    bare = re.sub(r"\[[^]]*\]", " ", bare)
    return {name for name in _SELECTOR.findall(bare) if name not in _KEYWORDS}


def unknown(query: str) -> set[str]:
    """Those that nothing exports."""
    return read(query) - exported() - _OF_PROMETHEUS
