"""Alerts and autoscaling queries in the hands of Prometheus's own tool, where it is installed (Debian: prometheus)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.deploy import metrics
from tests.deploy.manifests import KUBERNETES, ROOT
from tests.deploy.promtool import needs_promtool, promtool


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    resource = yaml.safe_load((ROOT / "deploy" / "alerts" / "rules.yaml").read_text())
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(resource["spec"]))
    return file


@needs_promtool
def test_rules_are_valid(rules: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", rules)


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(rules: Path, tmp_path: Path) -> None:
    scenario = tmp_path / "alerts_test.yaml"
    scenario.write_text(Path(__file__).with_name("alerts_test.yaml").read_text().replace("RULES", str(rules)))
    assert "SUCCESS" in promtool("test", "rules", scenario)


@needs_promtool
def test_scaling_and_dashboard_queries_parse(tmp_path: Path) -> None:
    queries = [
        trigger["metadata"]["query"]
        for role in ("embed", "rerank")
        for trigger in yaml.safe_load((KUBERNETES / "components" / "keda" / f"{role}.yaml").read_text())["spec"][
            "triggers"
        ]
    ]
    queries += metrics.adapted().values()
    dashboard = json.loads((ROOT / "deploy" / "dashboards" / "winnow.json").read_text())
    queries += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(queries)} rules" in promtool("check", "rules", file)
