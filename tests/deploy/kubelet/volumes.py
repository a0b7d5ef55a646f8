"""Volumes as folders of the host."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tests.deploy.manifests import Manifests, Object

_WILDCARDS = re.compile(r"\[::\](?=:)|\*( -::\*)?$", re.M)


def narrow(text: str, address: str) -> str:
    """A wildcard address becomes the pod's own, since pods share the host's network here."""
    return _WILDCARDS.sub(address, text)


def folder(volume: Object, m: Manifests, storage: Path, pod: Path, address: str, secrets: Path) -> Path:
    """The folder that stands for a pod's volume. Claims live in `storage`, what is the pod's own in `pod`."""
    own = pod / "volumes" / str(volume["name"])
    if "emptyDir" in volume:
        own.mkdir(parents=True)
    elif "persistentVolumeClaim" in volume:
        own = storage / str(volume["persistentVolumeClaim"]["claimName"])
        own.mkdir(parents=True, exist_ok=True)
    elif "configMap" in volume:
        source = volume["configMap"]
        data = m.get("ConfigMap", source["name"])["data"]
        items = {item["key"]: item["path"] for item in source.get("items", [])} or {key: key for key in data}
        own.mkdir(parents=True)
        for key, path in items.items():
            (own / path).write_text(narrow(data[key], address))
    elif "secret" in volume:
        own = secrets / str(volume["secret"]["secretName"])
        assert own.is_dir(), f"there is no Secret {own.name}"
    else:
        raise NotImplementedError(f"volume {volume}")
    return own


def write_secret(secrets: Path, name: str, data: dict[str, bytes]) -> None:
    """Writes or replaces a Secret as the kubelet does: new files beside the old, then one link turns to them."""
    own = secrets / name
    own.mkdir(parents=True, exist_ok=True)
    link = own / "..data"
    old = own / os.readlink(link) if link.is_symlink() else None
    fresh = own / f"..{len(list(own.iterdir()))}_{os.urandom(4).hex()}"
    fresh.mkdir()
    for key, value in data.items():
        (fresh / key).write_bytes(value)
    turned = own / "..data_tmp"
    turned.symlink_to(fresh.name)
    turned.rename(link)
    for key in data:
        if not (own / key).is_symlink():
            (own / key).symlink_to(f"..data/{key}")
    if old is not None:
        shutil.rmtree(old)
