"""Who reaches whom: Services and ports, and the ways that NetworkPolicies leave open."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from tests.deploy.manifests import Manifests, port_number
from tests.deploy.network_policies import Edge, allowed, allows, opened
from tests.deploy.policies.processes import ours


def services_reach_ports(m: Manifests) -> Iterator[str]:
    """Every Service selects one workload and names ports that it has; workers are headless, for the client balances."""
    for thing in m.all("Service"):
        name, spec = thing["metadata"]["name"], thing["spec"]
        _, behind = m.serving(name)
        if len(behind) != 1:
            yield f"Service {name} selects {len(behind)} workloads"
        for port in spec["ports"]:
            for pods in behind:
                if port_number(pods, port.get("targetPort", port["port"])) is None:
                    yield f"Service {name}: {pods.name} has no port {port.get('targetPort')}"
        if spec.get("clusterIP") != "None" and name != "winnow-gateway":
            yield f"Service {name} is not headless"


def listens_as_set(m: Manifests) -> Iterator[str]:
    """The ports that a container lists are those on which its settings make it listen."""
    for pods, container, kind, environment in ours(m):
        prefix = str(kind.model_config["env_prefix"])
        for name in ("grpc", "metrics", "health", "http"):
            setting = "listen" if name == "grpc" else f"{name}_listen"
            known = kind.model_fields.get(setting)
            value = environment.get(prefix + setting.upper()) or (known and known.default)
            listed = {p["name"]: p["containerPort"] for p in container["ports"]}.get(name)
            if (int(value.rpartition(":")[2]) if value else None) != listed:
                yield f"{pods.name}: port {name} is {listed}, {prefix}{setting.upper()} says {value}"


def code_edges(m: Manifests) -> set[Edge]:
    """Who calls whom on which port, by the settings: addresses of Services in targets and URLs, and the Collector."""
    edges = set()
    for pods, _, _, environment in ours(m):
        for name, value in environment.items():
            if name == "OTEL_EXPORTER_OTLP_ENDPOINT" and value:
                edges.add(Edge(pods.name, "collector", urlsplit(value).port or 0))
            if not value or not name.endswith(("_TARGET", "_URL")):
                continue
            url = urlsplit(value if "://" in value else f"dns:///{value}")
            host, _, port = (url.netloc or url.path.lstrip("/")).rpartition(":")
            service, behind = m.serving(host)
            target = next(p["targetPort"] for p in service["spec"]["ports"] if p["port"] == int(port))
            edges |= {Edge(pods.name, b.name, port_number(b, target) or 0) for b in behind}
    for pods in m.pods():
        if "--cluster-enabled" in pods.main.get("command", []):
            # A cluster's nodes talk among themselves, and the Job that forms it talks to them.
            edges |= {Edge(pods.name, pods.name, 6379), Edge(pods.name, pods.name, 16379)}
            edges.add(Edge(f"{pods.name}-create", pods.name, 6379))
    return edges


def edges_are_open(m: Manifests) -> Iterator[str]:
    """Every call that the settings make is allowed, on the way out and on the way in."""
    yield from (f"{edge} is closed" for edge in sorted(code_edges(m)) if not allows(m, edge))
    for pods in m.pods():
        if not allows(m, Edge(pods.name, "kube-dns", 53)):
            yield f"{pods.name} cannot ask DNS"


def no_other_edges(m: Manifests) -> Iterator[str]:
    """No way between our pods, or to a pod that has no business here, is open or half open that no setting uses."""
    yield from (f"{edge} is open and not used" for edge in sorted((allowed(m) | opened(m)) - code_edges(m)))
