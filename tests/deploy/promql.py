"""PromQL in our manifests: where it stands, and what its selectors say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.deploy import metrics
from tests.deploy.manifests import Manifests

_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}")
_MATCHER = re.compile(r'\s*([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*(?:,|$)')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Matcher:
    """`label OPERATOR "value"`."""

    label: str
    operator: str
    value: str


@dataclass(frozen=True)
class Query:
    """An expression and the place where it stands."""

    place: str
    text: str

    def selectors(self) -> list[tuple[str, list[Matcher]]]:
        """Each metric that it reads, with its matchers; fails on a metric without any, or on a matcher unread."""
        found = [(metric, list(_matchers(inside))) for metric, inside in _SELECTOR.findall(self.text)]
        assert {metric for metric, _ in found} == metrics.read(self.text), f"{self.place}: {self.text}"
        return found

    def groupings(self) -> set[str]:
        """Labels that results are grouped or joined by."""
        return {
            label.strip() for inside in _GROUPING.findall(self.text) for label in inside.split(",") if label.strip()
        }


def _matchers(inside: str) -> Iterator[Matcher]:
    at = 0
    while at < len(inside):
        match = _MATCHER.match(inside, at)
        assert match, inside
        yield Matcher(*match.groups())
        at = match.end()


def alerts(m: Manifests) -> list[Query]:
    """Of rules, those that record included."""
    groups = [group for thing in m.all("PrometheusRule") for group in thing["spec"]["groups"]]
    return [Query(rule.get("alert") or rule["record"], rule["expr"]) for group in groups for rule in group["rules"]]


def scalers(m: Manifests) -> list[Query]:
    """Of KEDA's ScaledObjects."""
    return [
        Query(thing["metadata"]["name"], trigger["metadata"]["query"])
        for thing in m.all("ScaledObject")
        for trigger in thing["spec"]["triggers"]
    ]


def dashboards(m: Manifests) -> list[Query]:
    """Of Grafana's dashboards: panels and variables."""
    found = []
    for thing in m.all("ConfigMap"):
        if not thing["metadata"].get("labels", {}).get("grafana_dashboard"):
            continue
        for board in map(json.loads, thing["data"].values()):
            for panel in board["panels"]:
                found += [Query(f"panel {panel['title']}", target["expr"]) for target in panel["targets"]]
            for variable in board["templating"]["list"]:
                if variable["type"] == "query":
                    selector = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
                    assert selector, variable
                    found.append(Query(f"variable {variable['name']}", f"count by ({selector[2]}) ({selector[1]})"))
    return found


def adapter() -> list[Query]:
    """Of the rules for prometheus-adapter, its templates filled in for pods of `winnow`."""
    return [Query(f"adapter {name}", query) for name, query in metrics.adapted().items()]
