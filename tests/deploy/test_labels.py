"""Every PromQL selector in the manifests names a metric, labels and values that the code exports."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.redis.faults import Fault
from services.runtime.telemetry import names
from services.runtime.telemetry.names import Instrument
from services.runtime.telemetry.setup import Telemetry
from tests.deploy import metrics, promql
from tests.deploy.manifests import Manifests
from tests.deploy.promql import Matcher, Query
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2

# What Prometheus and Kubernetes add to each series; their values are the manifests' own.
TARGET = {"namespace", "service", "pod", "job", "instance", "container", "endpoint"}
METHODS = frozenset(
    f"{service.full_name}/{method.name}"
    for module in (embed_pb2, rerank_pb2, retrieval_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
# The lists that `names` leaves to others.
ELSEWHERE = {names.RPC_METHOD: METHODS, names.ERROR_TYPE: frozenset({*Fault, *names.CacheFault})}
COMPONENTS = ("prometheus", "otlp", "tls", "redis-cluster", "gateway-api")


def instruments() -> dict[str, Instrument]:
    return {name: value for name, value in vars(names).items() if isinstance(value, Instrument)}


@functools.cache
def series() -> dict[str, Instrument]:
    """The instrument behind each name on the Prometheus endpoint, as the endpoint itself tells it."""
    telemetry = Telemetry.start("test", "127.0.0.1:0", {})
    counters = {"WORKER_ATTEMPTS", "SHED", "DEGRADED_ANSWERS", "TOKENS", "CACHE_HITS", "CACHE_MISSES", "CACHE_ERRORS"}
    counters |= {"CALLER_TOKENS", "CALLER_REFUSALS"}
    try:
        for constant, instrument in instruments().items():
            mark = {"instrument": constant}
            if instrument.buckets:
                telemetry.histogram(instrument).record(1.0, mark)
            elif constant in counters:
                telemetry.counter(instrument).add(1, mark)
            else:
                telemetry.levels(instrument, lambda mark=mark: [(1.0, mark)])  # type: ignore[misc]
        exposition = metrics.scraped(telemetry)
    finally:
        telemetry.shutdown()
    found = re.findall(r'^(\w+)\{[^}]*instrument="(\w+)"', exposition, re.MULTILINE)
    assert {constant for _, constant in found} == set(instruments())
    return {name: instruments()[constant] for name, constant in found}


def alternatives(value: str) -> list[str]:
    """The words of an alternation, spelled out: "a|b" and ".*/(a|b)"."""
    group = re.fullmatch(r"([^()|]*)\(([^()]*)\)([^()|]*)", value)
    if group:
        return [f"{group[1]}{word}{group[3]}" for word in group[2].split("|")]
    return value.split("|")


def wrong(query: Query) -> Iterator[str]:
    """What a query reads that nothing exports."""
    read = query.selectors()
    for metric, matchers in read:
        instrument = series().get(metric)
        if instrument is None:
            if metric != "up":
                yield f"{query.place}: no metric {metric}"
            continue
        labels = {label.replace(".", "_"): (label, values) for label, values in instrument.labels.items()}
        for matcher in matchers:
            if matcher.label in TARGET:
                continue
            if matcher.label not in labels:
                yield f"{query.place}: {metric} has no label {matcher.label}"
                continue
            label, values = labels[matcher.label]
            yield from wrong_values(query, matcher, ELSEWHERE[label] if values is None else values)
    known = {label.replace(".", "_") for m, _ in read if m in series() for label in series()[m].labels}
    for label in query.groupings() - known - TARGET - {"le"}:
        yield f"{query.place}: grouped by {label}, which none of its metrics has"


def wrong_values(query: Query, matcher: Matcher, values: frozenset[str]) -> Iterator[str]:
    for value in alternatives(matcher.value) if "~" in matcher.operator else [matcher.value]:
        if not value:  # series without the label
            continue
        if not any(re.fullmatch(value, one) if "~" in matcher.operator else value == one for one in values):
            yield f"{query.place}: {matcher.label} is never {value}"


@pytest.fixture(scope="module", params=["keda", "hpa"])
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    folder: Path = tmp_path_factory.mktemp("labels")
    return Manifests.compose(folder / "all", "gpu-0.6b", (request.param, *COMPONENTS), "somewhere")


def test_every_query_reads_what_is_exported(rendered: Manifests) -> None:
    queries = [*promql.alerts(rendered), *promql.scalers(rendered), *promql.dashboards(rendered), *promql.adapter()]
    assert len(promql.alerts(rendered)) >= 7
    assert [line for query in queries for line in wrong(query)] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('rate(winnow_shed_total{reason="OVERLOADED"}[5m])', "reason is never OVERLOADED"),
        ('rate(winnow_shed_total{reason=~"overloaded|full"}[5m])', "reason is never full"),
        ('rate(winnow_shed_total{cause="overloaded"}[5m])', "winnow_shed_total has no label cause"),
        ('rate(winnow_shedded_total{reason="overloaded"}[5m])', "no metric winnow_shedded_total"),
        ('rate(rpc_server_call_duration_seconds_count{rpc_status_code="EXHAUSTED"}[5m])', "never EXHAUSTED"),
        ('rate(rpc_server_call_duration_seconds_count{rpc_method=~".*/(Search|Find)"}[5m])', "never .*/Find"),
        ('sum by (cause) (rate(winnow_shed_total{reason="overloaded"}[5m]))', "grouped by cause"),
        ('rate(winnow_cache_errors_total{error_type="You"}[5m])', "error_type is never You"),
    ],
)
def test_what_nothing_exports_is_noticed(text: str, said: str) -> None:
    (line,) = wrong(Query("here", text))
    assert said in line
