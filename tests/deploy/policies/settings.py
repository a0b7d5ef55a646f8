"""What the processes are told: settings that they know and accept, weights that are there, a Redis that fits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.settings import GatewaySettings
from tests.deploy.manifests import Manifests
from tests.deploy.policies.processes import SETTINGS, module_of, ours
from tests.deploy.policies.quantities import quantity, redis_bytes

# Variables that other software reads.
_OTHERS = {"HF_HUB_OFFLINE", "HF_HOME", "POD_IP"}


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
    for pods, container, kind, environment in ours(m):
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


def weights_are_as_set(m: Manifests) -> Iterator[str]:
    """A worker's model lies in a volume mounted read-only, the hub is off, and a Job or an image fills the volume."""
    for pods, container, kind, environment in ours(m):
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
