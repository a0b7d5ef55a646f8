"""Alerts and autoscaling queries in the hands of Prometheus's own tool, where it is installed (Debian: prometheus)."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import grpc
import pytest
import yaml

from services.runtime.errors import ReplicaFull
from services.runtime.telemetry.setup import Telemetry
from tests.deploy import metrics
from tests.deploy.manifests import KUBERNETES, ROOT
from tests.deploy.promtool import needs_promtool, promtool
from tests.support.gateway import running
from tests.support.serving import failure
from winnow.embed.v1 import embed_pb2


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


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "alerts" / "rules.yaml").read_text())["spec"]["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    seen = [
        (check["alertname"], bool(check["exp_alerts"]))
        for test in yaml.safe_load(Path(__file__).with_name("alerts_test.yaml").read_text())["tests"]
        for check in test["alert_rule_test"]
    ]
    assert set(seen) == {(alert, fires) for alert in alerts for fires in (True, False)}


@needs_promtool
async def test_a_gateway_that_refuses_fires_the_alert_on_shedding(rules: Path, tmp_path: Path) -> None:
    telemetry = Telemetry.start("winnow-gateway", "127.0.0.1:0", {})
    try:
        async with running(telemetry=telemetry) as gateway:
            gateway.embed_worker.problem = ReplicaFull(1.0)
            for number in range(80):
                request = embed_pb2.EmbedRequest(texts=[f"text {number}"])
                assert (await failure(gateway.embed.Embed(request))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            exposition = await asyncio.to_thread(metrics.scraped, telemetry)
    finally:
        telemetry.shutdown()
    [(labels, count)] = re.findall(r"^winnow_shed_total\{(.*)\} (\S+)$", exposition, re.MULTILINE)
    assert float(count) == 80
    series = f'winnow_shed_total{{namespace="winnow",service="winnow-gateway",{labels}}}'
    fired = {
        "exp_labels": {"severity": "ticket", "service": "winnow-gateway"},
        "exp_annotations": {
            "summary": "winnow-gateway refuses 1.333 calls a second for load.",
            "action": "Is the pool at maxReplicaCount, or do new replicas stay Pending?",
        },
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": "0+80x30"}],  # as many in each minute
        "alert_rule_test": [{"eval_time": "20m", "alertname": "WinnowShedding", "exp_alerts": [fired]}],
    }
    scenario = tmp_path / "shedding.yaml"
    scenario.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}))
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
