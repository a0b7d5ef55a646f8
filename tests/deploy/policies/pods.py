"""Each pod by itself: its limits, its probes, its rights, its images."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.deploy.manifests import Manifests, port_number
from tests.deploy.policies.processes import ours
from tests.deploy.policies.quantities import quantity


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
    for pods, container, kind, environment in ours(m):
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
