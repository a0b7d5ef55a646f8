"""Pods come and go, and no call is lost: spread, budgets, time to end in."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.settings import GatewaySettings
from tests.deploy.manifests import Manifests, selects
from tests.deploy.policies.processes import ours

_LAST_WORDS_S = 0.5  # services/runtime/server.py gives the last statuses as long, after the drain
_TELEMETRY_S = 5  # services/runtime/telemetry/setup.py gives the exporters as long to send what is left
_ENDPOINTS_S = 2  # a kube-proxy takes a pod out of a Service in less
_LOOK_UP_S = 3  # gateway/models/replicas.py asks DNS so often
_DNS_S = 5  # a cluster's DNS caches an answer for so long


def spread_and_budget(m: Manifests) -> Iterator[str]:
    """Each Deployment spreads over zones and nodes, is protected by one budget, and loses no replica in an update."""
    for thing in m.all("Deployment", "StatefulSet"):
        name, labels = thing["metadata"]["name"], thing["spec"]["template"]["metadata"]["labels"]
        budgets = [b for b in m.all("PodDisruptionBudget") if selects(b["spec"]["selector"]["matchLabels"], labels)]
        if len(budgets) != 1:
            yield f"{name} has {len(budgets)} PodDisruptionBudgets"
        if thing["spec"]["selector"]["matchLabels"] != labels:
            yield f"{name} does not select its own pods"
        if thing["kind"] == "Deployment":
            keys = {c["topologyKey"] for c in thing["spec"]["template"]["spec"].get("topologySpreadConstraints", [])}
            if keys != {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}:
                yield f"{name} spreads over {sorted(keys)}"
            if thing["spec"]["strategy"].get("rollingUpdate") != {"maxSurge": 1, "maxUnavailable": 0}:
                yield f"{name} takes replicas away before it adds new ones"


def grace(m: Manifests) -> Iterator[str]:
    """A pod has time for preStop, the drain, its connections' end and the last spans before it is killed."""
    for pods, container, kind, environment in ours(m):
        prefix = str(kind.model_config["env_prefix"])
        drain = float(environment.get(f"{prefix}DRAIN_SECONDS") or kind.model_fields["drain_seconds"].default)
        pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        needed = pre_stop + drain + _LAST_WORDS_S + _TELEMETRY_S
        if pods.spec["terminationGracePeriodSeconds"] < needed:
            yield f"{pods.name}: grace {pods.spec['terminationGracePeriodSeconds']} s < {needed:g} s that it needs"


def successors_are_known(m: Manifests) -> Iterator[str]:
    """A pod outlives the time in which its callers learn of others: until then it serves as before.

    A worker's gateways look its name up every few seconds. A gateway's callers, once it is out of the Service, move to
    another one when their connections have reached their age.
    """
    for pods, container, kind, environment in ours(m):
        learnt: float = _LOOK_UP_S + _DNS_S
        if kind is GatewaySettings:
            age = environment.get("GATEWAY_CONNECTION_AGE_SECONDS")
            default = kind.model_fields["connection_age_seconds"].default
            learnt = 1.1 * float(age or default) + _ENDPOINTS_S  # grpc spreads the age by a tenth
        if container["lifecycle"]["preStop"]["sleep"]["seconds"] < learnt:
            yield f"{pods.name}: preStop ends before all callers know of another pod ({learnt:g} s)"
