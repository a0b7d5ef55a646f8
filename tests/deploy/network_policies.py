"""What NetworkPolicies allow, by the rules of the API: a pod that some policy selects may do only what one allows."""

from __future__ import annotations

from typing import NamedTuple

from tests.deploy.manifests import Manifests, Object, selects

# Pods outside our manifests that policies speak of, with the labels of their namespaces.
_OUTSIDE: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "kube-dns": ({"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"}),
    "prometheus": ({"app.kubernetes.io/name": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"}),
    "collector": (
        {"app.kubernetes.io/component": "opentelemetry-collector"},
        {"kubernetes.io/metadata.name": "observability"},
    ),
    "caller": ({}, {"kubernetes.io/metadata.name": "elsewhere"}),
}
STRAY = "a stray pod"
_ANYONE: Object = {"namespaceSelector": {}}


class Edge(NamedTuple):
    """Workload `source` calls workload `target` on TCP `port`."""

    source: str
    target: str
    port: int

    def __str__(self) -> str:
        return f"{self.source} → {self.target}:{self.port}"


def allows(m: Manifests, edge: Edge) -> bool:
    """Whether both ends let the edge pass. Names of `_OUTSIDE` may stand at either end; they allow everything."""
    return _side(m, edge, "Egress") and _side(m, edge, "Ingress")


def allowed(m: Manifests) -> set[Edge]:
    """All edges that both ends let pass, between our workloads and a stray pod without labels beside them."""
    return {edge for edge in _possible(m) if allows(m, edge)}


def opened(m: Manifests) -> set[Edge]:
    """All edges that at least one end names in a policy, but for the callers that come in from anywhere."""
    return {
        edge for edge in _possible(m) if _side(m, edge, "Egress", named=True) or _side(m, edge, "Ingress", named=True)
    }


def _possible(m: Manifests) -> set[Edge]:
    names = [*sorted({pods.name for pods in m.pods()}), STRAY]
    ports = {
        port["port"]
        for policy in m.all("NetworkPolicy")
        for rule in (*policy["spec"].get("ingress", []), *policy["spec"].get("egress", []))
        for port in rule.get("ports", [])
        if port.get("protocol", "TCP") == "TCP"
    }
    return {Edge(a, b, port) for a in names for b in names for port in ports}


def _side(m: Manifests, edge: Edge, direction: str, named: bool = False) -> bool:
    """Whether one end lets the edge pass; with `named` only by rules that say who, not by those for anyone."""
    own, other = (edge.source, edge.target) if direction == "Egress" else (edge.target, edge.source)
    if own in _OUTSIDE:
        return True
    own_labels, namespace = _who(m, own)
    policies = [
        policy["spec"]
        for policy in m.all("NetworkPolicy")
        if direction in policy["spec"]["policyTypes"]
        and policy["metadata"]["namespace"] == namespace["kubernetes.io/metadata.name"]
        and selects(policy["spec"]["podSelector"].get("matchLabels", {}), own_labels)
    ]
    if not policies:
        return True
    to, way = ("to", "egress") if direction == "Egress" else ("from", "ingress")
    return any(
        _ports(rule, edge.port)
        and any(_peer(m, peer, other, namespace) for peer in rule.get(to, []) if not (named and peer == _ANYONE))
        for policy in policies
        for rule in policy.get(way, [])
    )


def _ports(rule: Object, port: int) -> bool:
    return "ports" not in rule or any(
        known["port"] == port and known.get("protocol", "TCP") == "TCP" for known in rule["ports"]
    )


def _peer(m: Manifests, peer: Object, name: str, own_namespace: dict[str, str]) -> bool:
    labels, namespace = _who(m, name)
    if "ipBlock" in peer:
        return False  # addresses outside the cluster
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"].get("matchLabels", {}), namespace):
            return False
    elif namespace != own_namespace:
        return False
    return selects(peer.get("podSelector", {}).get("matchLabels", {}), labels)


def _who(m: Manifests, name: str) -> tuple[dict[str, str], dict[str, str]]:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if name == STRAY:
        return {}, {"kubernetes.io/metadata.name": m.all("Deployment")[0]["metadata"]["namespace"]}
    thing = next(t for t in m.all("Deployment", "StatefulSet", "Job", "DaemonSet") if t["metadata"]["name"] == name)
    return thing["spec"]["template"]["metadata"]["labels"], {
        "kubernetes.io/metadata.name": thing["metadata"]["namespace"]
    }
