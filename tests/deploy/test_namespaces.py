"""An installation in another namespace is whole: nothing in it names the first one's, nor reads its series."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy import promql, readme
from tests.deploy.manifests import ROOT, Manifests, Object
from tests.deploy.policies import POLICIES, Policy
from tests.deploy.promtool import needs_promtool, promtool
from tests.deploy.test_render import VERSIONS, check

EVERY = ("keda", "prometheus", "otlp", "callers", "tls", "redis-cluster", "gateway-api")
NAMESPACES = ("first", "elsewhere-2")


def render(folder: Path, namespace: str, scaler: str = "keda") -> Manifests:
    return Manifests.compose(folder / namespace, "gpu-0.6b", (scaler, *EVERY[1:]), namespace)


@pytest.fixture(scope="module")
def installations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifests]:
    folder = tmp_path_factory.mktemp("namespaces")
    return {namespace: render(folder, namespace) for namespace in NAMESPACES}


@pytest.fixture(scope="module")
def moved(installations: dict[str, Manifests]) -> Manifests:
    return installations[NAMESPACES[1]]


def strings(thing: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string of an object with its path."""
    if isinstance(thing, dict):
        for key, value in thing.items():
            yield from strings(value, f"{path}.{key}")
    elif isinstance(thing, list):
        for value in thing:
            yield from strings(value, f"{path}[]")
    elif isinstance(thing, str):
        yield path, thing


def texts(m: Manifests) -> Iterator[tuple[str, str]]:
    return (
        (f"{thing['kind']} {thing['metadata']['name']}{path}", text)
        for thing in m.objects
        for path, text in strings(thing)
    )


def test_every_object_lies_in_it_and_the_namespace_bears_its_name(moved: Manifests) -> None:
    assert {t["metadata"].get("namespace") for t in moved.objects if t["kind"] != "Namespace"} == {"elsewhere-2"}
    assert [thing["metadata"]["name"] for thing in moved.all("Namespace")] == ["elsewhere-2"]


def test_two_installations_differ_in_the_namespace_alone(installations: dict[str, Manifests]) -> None:
    def sorted_objects(m: Manifests) -> list[str]:
        return sorted(json.dumps(thing, sort_keys=True) for thing in m.objects)

    first = [text.replace("first", "elsewhere-2") for text in sorted_objects(installations["first"])]
    assert sorted(first) == sorted_objects(installations["elsewhere-2"])


def test_nothing_names_the_default_namespace(moved: Manifests) -> None:
    reference = re.compile(r"""-n winnow\b|\.winnow(\.svc|[:/]|$)|namespace"?\s*[=:]~?\s*\\?"?winnow\b""")
    assert [place for place, text in texts(moved) if reference.search(text)] == []
    whole = [place for place, text in texts(moved) if text == "winnow"]
    assert [place for place in whole if place.endswith((".namespace", "kubernetes.io/metadata.name"))] == []


def test_no_variable_is_left_unresolved(moved: Manifests) -> None:
    assert [place for place, text in texts(moved) if "_NAMESPACE)" in text] == []


def test_every_query_of_rules_and_scalers_reads_its_own_namespace_alone(moved: Manifests) -> None:
    queries = [*promql.alerts(moved), *promql.scalers(moved)]
    assert len(queries) == 7 + 4
    for query in queries:
        for metric, matchers in query.selectors():
            own = [one for one in matchers if one.label == "namespace"]
            assert own == [promql.Matcher("namespace", "=", "elsewhere-2")], f"{query.place}: {metric}"


def test_the_dashboard_asks_for_the_namespace(moved: Manifests) -> None:
    for query in promql.dashboards(moved):
        if not query.place.startswith("variable"):
            for metric, matchers in query.selectors():
                assert promql.Matcher("namespace", "=", "$namespace") in matchers, f"{query.place}: {metric}"


def test_alerts_of_two_installations_are_told_apart(installations: dict[str, Manifests]) -> None:
    for namespace, m in installations.items():
        rules = m.get("PrometheusRule", "winnow")["spec"]["groups"][0]["rules"]
        assert {rule["labels"]["namespace"] for rule in rules} == {namespace}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
def test_policies_hold_there(moved: Manifests, policy: Policy) -> None:
    assert list(policy(moved)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_its_objects_meet_their_schemas(moved: Manifests, version: str) -> None:
    for thing in moved.objects:
        check(thing, version)


def test_monitors_look_into_their_own_namespace(moved: Manifests) -> None:
    assert all("namespaceSelector" not in monitor["spec"] for monitor in moved.all("ServiceMonitor"))


def test_the_readme_installs_a_second_one(tmp_path: Path) -> None:
    (tmp_path / "winnow").symlink_to(ROOT)
    (tmp_path / "kustomization.yaml").write_text(readme.second_installation())
    m = Manifests.render(tmp_path)
    (namespace,) = [thing["metadata"]["name"] for thing in m.all("Namespace")]
    assert namespace == yaml.safe_load(readme.second_installation())["namespace"] != "winnow"
    for query in [*promql.alerts(m), *promql.scalers(m)]:
        assert f'namespace="{namespace}"' in query.text
    for policy in POLICIES:
        assert list(policy(m)) == []


def spec(m: Manifests) -> Object:
    found: Object = m.get("PrometheusRule", "winnow")["spec"]
    return found


@needs_promtool
def test_the_faults_of_one_do_not_wake_the_other(installations: dict[str, Manifests], tmp_path: Path) -> None:
    """Both installations' rules in one Prometheus: the first fails in every way, the other is well."""
    groups = []
    for namespace, m in installations.items():
        groups += [{**group, "name": f"{namespace}-{group['name']}"} for group in spec(m)["groups"]]
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": groups}))

    def series(namespace: str, metric: str, labels: str, values: str) -> Object:
        return {"series": f'{metric}{{namespace="{namespace}",{labels}}}', "values": values}

    calls = "rpc_server_call_duration_seconds_count"
    input_series = [
        series("elsewhere-2", "up", 'service="winnow-gateway"', "1x40"),
        series("elsewhere-2", calls, 'service="winnow-gateway"', "0+600x40"),
        series("elsewhere-2", "winnow_queue_seconds", 'service="winnow-embed"', "0.1x40"),
        series("first", "up", 'service="winnow-gateway"', "0x40"),
        series("first", calls, 'service="winnow-gateway",error_type="INTERNAL"', "0+600x40"),
        series("first", "winnow_queue_seconds", 'service="winnow-embed"', "9x40"),
        series("first", "winnow_shed_total", 'service="winnow-embed",reason="overloaded"', "0+600x40"),
        series("first", "winnow_degraded_total", 'stage="rerank",reason="RERANK_DEADLINE"', "0+600x40"),
        series("first", "winnow_cache_errors_total", 'service="winnow-gateway"', "0+600x40"),
    ]
    firing = 'count by (namespace) (ALERTS{alertstate="firing"})'
    test = {
        "interval": "1m",
        "input_series": input_series,
        "promql_expr_test": [
            {"expr": firing, "eval_time": "35m", "exp_samples": [{"labels": '{namespace="first"}', "value": 6}]}
        ],
    }
    scenario = tmp_path / "test.yaml"
    scenario.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}))
    assert "SUCCESS" in promtool("test", "rules", scenario)
