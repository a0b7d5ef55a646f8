"""The component `otlp`: with the variables that it sets, a process sends its spans, and says which pod sent them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from services.runtime.telemetry.setup import Telemetry
from tests.deploy.manifests import Manifests
from tests.deploy.network_policies import Edge, allows
from tests.deploy.policies.processes import ours
from tests.support.otlp import receiver

# What the kubelet knows of a pod.
FIELDS = {
    "metadata.name": "winnow-x-7d4b9c-abcde",
    "metadata.uid": "2f1c",
    "metadata.namespace": "elsewhere",
    "spec.nodeName": "node-7",
}
DEPLOYMENTS = ("winnow-embed", "winnow-gateway", "winnow-rerank")


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    return Manifests.compose(tmp_path_factory.mktemp("otlp"), "local", ("otlp",), "elsewhere")


def resolved(m: Manifests, deployment: str) -> dict[str, str]:
    """OTEL_* of a process as the kubelet resolves them: $(NAME) only by what `env` sets before it."""
    (container,) = [
        c for p, c, _, _ in ours(m) if p.name == deployment and c["name"] == deployment.removeprefix("winnow-")
    ]
    found = {name: value for name, value in m.settings(container).items() if value and "$(" not in value}
    before: dict[str, str] = {}
    for variable in container["env"]:
        field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        text = FIELDS[field] if field else variable.get("value", "")
        before[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: before.get(match[1], match[0]), text)
    return {name: value for name, value in (found | before).items() if name.startswith("OTEL_")}


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
async def test_a_span_says_which_pod_sent_it(
    composed: Manifests, deployment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = deployment.removeprefix("winnow-")
    async with receiver() as to:
        variables = resolved(composed, deployment)
        assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel-collector.observability.svc:4317"
        for name, value in {**variables, "OTEL_EXPORTER_OTLP_ENDPOINT": to.endpoint}.items():
            monkeypatch.setenv(name, value)
        telemetry = Telemetry.start(deployment)
        telemetry.tracer.start_span("x").end()
        await asyncio.to_thread(telemetry.shutdown)
    (resource,) = to.resources
    assert (
        resource.items()
        >= {
            "service.name": deployment,
            "service.namespace": "elsewhere",
            "service.instance.id": f"elsewhere.winnow-x-7d4b9c-abcde.{container}",
            "k8s.namespace.name": "elsewhere",
            "k8s.node.name": "node-7",
            "k8s.pod.name": "winnow-x-7d4b9c-abcde",
            "k8s.pod.uid": "2f1c",
            "k8s.container.name": container,
        }.items()
    )


def test_each_process_may_reach_the_collector_and_nobody_else_may(composed: Manifests, tmp_path: Path) -> None:
    edges = {pods.name: Edge(pods.name, "collector", 4317) for pods in composed.pods()}
    assert sorted(name for name, edge in edges.items() if allows(composed, edge)) == sorted(DEPLOYMENTS)
    assert not any(allows(composed, Edge(name, "collector", 4318)) for name in DEPLOYMENTS)
    without = Manifests.compose(tmp_path, "local", ())
    assert not any(allows(without, edge) for edge in edges.values())
