"""What watches the processes, alerts, dashboards and monitors, finds what it looks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tests.deploy import metrics
from tests.deploy.manifests import Manifests, selects
from tests.deploy.policies.processes import ours

_POD_ATTRIBUTES = (
    "k8s.namespace.name",
    "k8s.node.name",
    "k8s.pod.name",
    "k8s.pod.uid",
    "k8s.container.name",
    "service.instance.id",
)


def watched_metrics_exist(m: Manifests) -> Iterator[str]:
    """Alerts and dashboards read metrics that the processes export."""
    for rules in m.all("PrometheusRule"):
        for group in rules["spec"]["groups"]:
            for rule in group["rules"]:
                yield from (f"{rule['alert']}: {name} is not exported" for name in metrics.unknown(rule["expr"]))
    for thing in m.all("ConfigMap"):
        if thing["metadata"].get("labels", {}).get("grafana_dashboard"):
            for text in thing["data"].values():
                for panel in json.loads(text)["panels"]:
                    for target in panel["targets"]:
                        for name in metrics.unknown(target["expr"]):
                            yield f"panel {panel['title']}: {name} is not exported"


def traces_name_their_pod(m: Manifests) -> Iterator[str]:
    """A process that sends traces says in which pod, on which node; each $(NAME) is set before it is used."""
    for pods, container, _, environment in ours(m):
        if not environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            continue
        text = environment.get("OTEL_RESOURCE_ATTRIBUTES") or ""
        attributes = dict(item.partition("=")[::2] for item in text.split(","))
        for attribute in _POD_ATTRIBUTES:
            if not attributes.get(attribute):
                yield f"{pods.name}: spans do not bear {attribute}"
        order = [variable["name"] for variable in container.get("env", [])]
        before = order[: order.index("OTEL_RESOURCE_ATTRIBUTES")] if "OTEL_RESOURCE_ATTRIBUTES" in order else []
        for name in re.findall(r"\$\((\w+)\)", text):
            if name not in before:
                yield f"{pods.name}: {name} is not set before OTEL_RESOURCE_ATTRIBUTES"


def monitors_find_ports(m: Manifests) -> Iterator[str]:
    """Every ServiceMonitor selects a Service that has the port, and the port is the pod's metrics port."""
    for monitor in m.all("ServiceMonitor"):
        found = [
            s
            for s in m.all("Service")
            if selects(monitor["spec"]["selector"]["matchLabels"], s["metadata"].get("labels", {}))
        ]
        if len(found) != 1:
            yield f"ServiceMonitor {monitor['metadata']['name']} finds {len(found)} Services"
        for endpoint in monitor["spec"]["endpoints"]:
            for service in found:
                if endpoint["port"] not in {port["name"] for port in service["spec"]["ports"]}:
                    yield f"ServiceMonitor {monitor['metadata']['name']}: no port {endpoint['port']}"
