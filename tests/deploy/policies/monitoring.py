"""What watches the processes, alerts, dashboards and monitors, finds what it looks for."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.deploy import metrics
from tests.deploy.manifests import Manifests, selects


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
