"""Autoscalers: they alone set the number of replicas, by metrics that there are."""

from __future__ import annotations

from collections.abc import Iterator

from tests.deploy import metrics
from tests.deploy.manifests import Manifests


def one_owner_of_replicas(m: Manifests) -> Iterator[str]:
    """Where an autoscaler sets the number of replicas, the manifest does not."""
    for scaler in m.all("ScaledObject", "HorizontalPodAutoscaler"):
        target = m.get("Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        if "replicas" in target["spec"]:
            yield f"{target['metadata']['name']}: every apply would undo what {scaler['kind']} did"


def scaling_metrics_exist(m: Manifests) -> Iterator[str]:
    """Autoscalers read metrics that the processes export, in the namespace and of the Service that they scale."""
    for scaler in m.all("ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            yield from (f"{scaler['metadata']['name']}: {name} is not exported" for name in metrics.unknown(query))
            for label, value in (
                ("namespace", scaler["metadata"]["namespace"]),
                ("service", scaler["spec"]["scaleTargetRef"]["name"]),
            ):
                if f'{label}="{value}"' not in query:
                    yield f"{scaler['metadata']['name']}: the query is not about {label} {value}"
    for scaler in m.all("HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            name = metric["pods"]["metric"]["name"]
            query = metrics.adapted().get(name)
            if query is None:
                yield f"{scaler['metadata']['name']}: no rule makes {name}"
            else:
                yield from (f"{scaler['metadata']['name']}: {each} is not exported" for each in metrics.unknown(query))
