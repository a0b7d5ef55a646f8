"""What must hold of the manifests, one function each: it returns what is wrong, in words; nothing where all is well.

Those at the end tie the manifests to the code: to its settings, its metrics, its timings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from gateway.settings import GatewaySettings
from services.embed.settings import EmbedSettings
from services.rerank.settings import RerankSettings
from services.runtime.settings import ProcessSettings
from tests.deploy import metrics
from tests.deploy.manifests import Manifests, Object, Pods, port_number, selects
from tests.deploy.network_policies import Edge, allowed, allows, opened

SETTINGS: dict[str, type[ProcessSettings]] = {
    "gateway": GatewaySettings,
    "services.embed": EmbedSettings,
    "services.rerank": RerankSettings,
}
# Variables that other software reads.
_OTHERS = {"HF_HUB_OFFLINE", "HF_HOME", "POD_IP"}
_LAST_WORDS_S = 0.5  # services/runtime/server.py gives the last statuses as long, after the drain
_TELEMETRY_S = 5  # services/runtime/telemetry/setup.py gives the exporters as long to send what is left
_ENDPOINTS_S = 2  # a kube-proxy takes a pod out of a Service in less
_RESOLVE_S = 5  # services/runtime/channel.py asks DNS at most so often

Policy = Callable[[Manifests], Iterator[str]]


def module_of(container: Object) -> str | None:
    """The Python module that a container runs, where it runs one of ours."""
    words = [*container.get("command", []), *container.get("args", [])]
    return words[2] if words[:2] == ["python", "-m"] else None


def _ours(m: Manifests) -> Iterator[tuple[Pods, Object, type[ProcessSettings], dict[str, str | None]]]:
    for pods, container in m.containers():
        module = module_of(container)
        if module is not None:
            yield pods, container, SETTINGS[module], m.settings(container)


def limits(m: Manifests) -> Iterator[str]:
    """Every container requests and is limited in CPU and memory, and requests no more than its limit."""
    for pods, container in m.containers():
        resources = container.get("resources", {})
        for what in ("requests", "limits"):
            for unit in ("cpu", "memory"):
                if unit not in resources.get(what, {}):
                    yield f"{pods.name}/{container['name']} has no {what}.{unit}"
        for unit, limit in resources.get("limits", {}).items():
            if quantity(resources.get("requests", {}).get(unit, limit)) > quantity(limit):
                yield f"{pods.name}/{container['name']} requests more {unit} than its limit"


def probes(m: Manifests) -> Iterator[str]:
    """Every container that serves has the three probes, on a port that it has, for a service that it serves."""
    for pods in m.pods():
        if pods.kind == "Job":
            continue
        for container in pods.spec["containers"]:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind)
                if probe is None:
                    yield f"{pods.name}/{container['name']} has no {kind}"
                    continue
                port = (probe.get("grpc") or probe.get("tcpSocket") or {}).get("port")
                if port_number(pods, port) is None:
                    yield f"{pods.name}/{container['name']}: {kind} asks port {port}, which no container has"


def probe_ports_speak_plaintext(m: Manifests) -> Iterator[str]:
    """gRPC probes ask a port where the process answers without TLS; the liveness probe asks for "liveness" alone."""
    for pods, container, kind, environment in _ours(m):
        prefix = str(kind.model_config["env_prefix"])
        plain = environment.get(f"{prefix}HEALTH_LISTEN")
        if plain is None and not environment.get(f"{prefix}TLS_CERT"):
            plain = environment.get(f"{prefix}LISTEN") or str(kind.model_fields["listen"].default)
        port = plain.rpartition(":")[2] if plain else None
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container.get(name, {}).get("grpc", {})
            if str(asked.get("port")) != port:
                yield f"{pods.name}: {name} asks port {asked.get('port')}, plaintext health is on {port}"
        if container.get("livenessProbe", {}).get("grpc", {}).get("service") != "liveness":
            yield f"{pods.name}: the livenessProbe must ask for the health name liveness, or a full queue restarts pods"


def restricted(m: Manifests) -> Iterator[str]:
    """Pods meet the `restricted` Pod Security Standard, with a root file system that is read-only besides."""
    for pods in m.pods():
        context = pods.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{pods.name} may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pods.name} has no seccomp profile"
        if any(pods.spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{pods.name} uses the host's namespaces"
        for volume in pods.spec.get("volumes", []):
            if "hostPath" in volume:
                yield f"{pods.name} mounts the host's files"
        for container in pods.containers():
            own = container.get("securityContext", {})
            name = f"{pods.name}/{container['name']}"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{name} allows privilege escalation"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{name} can write to its root file system"
            if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
                yield f"{name} keeps capabilities"


def no_tokens(m: Manifests) -> Iterator[str]:
    """Each workload has a ServiceAccount of its own, and no pod holds its token."""
    accounts = {thing["metadata"]["name"]: thing for thing in m.all("ServiceAccount")}
    for pods in m.pods():
        if accounts.get(pods.spec.get("serviceAccountName", ""), {}).get("automountServiceAccountToken") is not False:
            yield f"{pods.name} has no ServiceAccount without token"
        if pods.spec.get("automountServiceAccountToken") is not False:
            yield f"{pods.name} mounts a token"


def no_service_links(m: Manifests) -> Iterator[str]:
    """Pods are spared the variables of Services: under our prefixes they would stop the start."""
    for pods in m.pods():
        if pods.spec.get("enableServiceLinks") is not False:
            yield f"{pods.name} leaves enableServiceLinks on"


def pinned_images(m: Manifests) -> Iterator[str]:
    """Images bear an exact version or a digest; images of weights the name of their model, or a digest."""
    for pods, container in m.containers():
        _, tag, digest = _image(container["image"])
        if not digest and not re.search(r"\d+\.\d+\.\d+", tag):
            yield f"{pods.name}: {container['image']} is not pinned"
    for pods in m.pods():
        for volume in pods.spec.get("volumes", []):
            reference = volume.get("image", {}).get("reference", "weights:pinned")
            _, tag, digest = _image(reference)
            if not digest and tag in {"", "latest", "model"}:
                yield f"{pods.name}: {reference} is not pinned"


def _image(reference: str) -> tuple[str, str, str]:
    rest, _, digest = reference.partition("@")
    folder, slash, name = rest.rpartition("/")
    name, _, tag = name.partition(":")
    return folder + slash + name, tag, digest


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


def listens_where_told(m: Manifests) -> Iterator[str]:
    """The ports that a container lists are those on which its settings make it listen."""
    for pods, container, kind, environment in _ours(m):
        prefix = str(kind.model_config["env_prefix"])
        for name, setting in (("grpc", "listen"), ("metrics", "metrics_listen"), ("health", "health_listen")):
            told = environment.get(prefix + setting.upper()) or kind.model_fields[setting].default
            listed = {p["name"]: p["containerPort"] for p in container["ports"]}.get(name)
            if (int(told.rpartition(":")[2]) if told else None) != listed:
                yield f"{pods.name}: port {name} is {listed}, {prefix}{setting.upper()} says {told}"


def grace(m: Manifests) -> Iterator[str]:
    """A pod has time for preStop, the drain, its connections' end and the last spans before it is killed."""
    for pods, container, kind, environment in _ours(m):
        prefix = str(kind.model_config["env_prefix"])
        drain = float(environment.get(f"{prefix}DRAIN_SECONDS") or kind.model_fields["drain_seconds"].default)
        pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        needed = pre_stop + drain + _LAST_WORDS_S + _TELEMETRY_S
        if pods.spec["terminationGracePeriodSeconds"] < needed:
            yield f"{pods.name}: grace {pods.spec['terminationGracePeriodSeconds']} s < {needed:g} s that it needs"


def successors_are_known(m: Manifests) -> Iterator[str]:
    """A pod outlives the time in which its callers learn of others: until then it serves as before.

    A worker's gateways look for replicas anew when a connection has reached its age. A gateway's callers, once it is
    out of the Service, move to another one when theirs has.
    """
    for pods, container, kind, environment in _ours(m):
        prefix = str(kind.model_config["env_prefix"])
        name = f"{prefix}CONNECTION_AGE_SECONDS"
        age = 1.1 * float(environment.get(name) or kind.model_fields["connection_age_seconds"].default)
        learnt = age + (_ENDPOINTS_S if kind is GatewaySettings else _RESOLVE_S)  # grpc spreads the age by a tenth
        if container["lifecycle"]["preStop"]["sleep"]["seconds"] < learnt:
            yield f"{pods.name}: preStop ends before all callers know of another pod ({learnt:g} s)"
        if kind is not GatewaySettings and learnt > 10:
            yield f"{pods.name}: a new replica may wait {learnt:g} s for its first call"


def known_settings(m: Manifests) -> Iterator[str]:
    """Every variable under a process's prefix is one of its settings, and no other is there without being known."""
    for pods, container in m.containers():
        module = module_of(container)
        for name in m.settings(container):
            if name in _OTHERS or name.startswith("OTEL_"):
                continue
            if module is None:
                continue
            kind = SETTINGS[module]
            prefix = str(kind.model_config["env_prefix"])
            if not name.startswith(prefix) or name.removeprefix(prefix).lower() not in kind.model_fields:
                yield f"{pods.name}/{container['name']}: {name} is no setting of {module}"


def settings_are_valid(m: Manifests) -> Iterator[str]:
    """The process would accept the values, by its own settings class."""
    for pods, container, kind, environment in _ours(m):
        prefix = str(kind.model_config["env_prefix"])
        given: dict[str, Any] = {
            name.removeprefix(prefix).lower(): value
            for name, value in environment.items()
            if name.startswith(prefix) and value is not None
        }
        try:
            kind(**given)
        except ValueError as error:
            yield f"{pods.name}/{container['name']}: {error}"


def weights_are_where_told(m: Manifests) -> Iterator[str]:
    """A worker's model lies in a volume mounted read-only, the hub is off, and a Job or an image fills the volume."""
    for pods, container, kind, environment in _ours(m):
        if kind is GatewaySettings:
            continue
        model = str(environment[f"{kind.model_config['env_prefix']}MODEL"])
        mounts = [c for c in container["volumeMounts"] if model.startswith(c["mountPath"] + "/")]
        if not mounts or not mounts[0].get("readOnly"):
            yield f"{pods.name}: {model} is in no volume that is mounted read-only"
        if environment.get("HF_HUB_OFFLINE") != "1":
            yield f"{pods.name} may ask the hub"
        source = next(v for v in pods.spec["volumes"] if v["name"] == mounts[0]["name"]) if mounts else {}
        if "image" in source and source["image"]["reference"].rpartition(":")[2] != model.rpartition("/")[2]:
            yield f"{pods.name}: the image {source['image']['reference']} is not of {model}"
        if "persistentVolumeClaim" in source:
            filled = [dict(m.settings(c)).get("TARGET") for p in m.pods() if p.kind == "Job" for c in p.containers()]
            if model not in filled:
                yield f"{pods.name}: no Job fills {model}"


def redis_fits(m: Manifests) -> Iterator[str]:
    """Redis's data leave room in the container; the cache evicts and is not saved, the index the other way round."""
    for name, policy, saved in (("cache", "allkeys-lfu", "no"), ("index", "noeviction", "yes")):
        conf = dict(
            line.split(" ", 1)
            for line in m.get("ConfigMap", f"winnow-{name}")["data"]["redis.conf"].splitlines()
            if line and not line.startswith("#")
        )
        pods = next(p for p in m.pods() if p.name == f"winnow-{name}")
        limit = quantity(pods.main["resources"]["limits"]["memory"])
        if redis_bytes(conf["maxmemory"]) > 0.76 * limit:
            yield f"winnow-{name}: maxmemory {conf['maxmemory']} leaves too little of {limit / 2**30:g} GiB"
        if (conf["maxmemory-policy"], conf["appendonly"]) != (policy, saved):
            yield f"winnow-{name}: {conf['maxmemory-policy']}, appendonly {conf['appendonly']}"


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


def code_edges(m: Manifests) -> set[Edge]:
    """Who calls whom on which port, by the settings: addresses of Services in targets and URLs."""
    edges = set()
    for pods, _, _, environment in _ours(m):
        for name, value in environment.items():
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


def quantity(text: str | int | float) -> float:
    """A Kubernetes quantity as a number."""
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text))
    assert match, text
    factors = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(match[1]) * factors[match[2]]


def redis_bytes(text: str) -> float:
    """A size as redis.conf writes it."""
    return float(text[:-2]) * {"kb": 2**10, "mb": 2**20, "gb": 2**30}[text[-2:]]


POLICIES: tuple[Policy, ...] = (
    limits, probes, probe_ports_speak_plaintext, restricted, no_tokens, no_service_links, pinned_images,
    spread_and_budget, services_reach_ports, listens_where_told, grace, successors_are_known, known_settings,
    settings_are_valid, weights_are_where_told, redis_fits, one_owner_of_replicas, scaling_metrics_exist,
    watched_metrics_exist, monitors_find_ports, edges_are_open, no_other_edges,
)  # fmt: skip
