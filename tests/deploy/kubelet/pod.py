"""One pod: its volumes, its containers one after another as the kubelet starts them, its probes, its end."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.process import Process
from tests.deploy import images
from tests.deploy.kubelet import probes
from tests.deploy.kubelet.volumes import folder, narrow
from tests.deploy.manifests import Manifests, Object, Pods, port_number
from tests.deploy.policies import quantity

_SANDBOX = Path(__file__).with_name("sandbox.py")


@dataclass(frozen=True)
class Node:
    """What pods of one machine share."""

    folder: Path
    models: Path
    """Stands for models/ in the worker image."""
    resolv_conf: str
    threads: Executor
    """Waits for processes."""
    changed: Callable[[], None]
    """Called whenever a pod's state changes."""


class Pod:
    """Runs from `start` until `delete` has come back."""

    def __init__(self, name: str, address: str, pods: Pods, manifests: Manifests, node: Node) -> None:
        self.name, self.address, self.pods = name, address, pods
        self.labels = pods.labels
        self.ready = self.terminating = False
        self.present = False
        """From the moment that it has an address to its end."""
        self.restarts = 0
        self.exits: list[int] = []
        """Statuses of the main container: 0 an orderly end, -9 killed when the grace was over."""
        self.became_ready = math.inf
        """loop.time()"""
        self.ended_after = math.inf
        """Seconds from deletion to the end of the process."""
        self._m, self._node = manifests, node
        self._folder = node.folder / name
        self._mounted: dict[str, Path] = {}
        self._process: Process | None = None
        self._life: asyncio.Task[None] | None = None
        self._watch: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins; what becomes of it is told by `ready`, `restarts` and `failed`."""
        self.present = True
        self._life = asyncio.create_task(self._live(), name=self.name)

    @property
    def failed(self) -> BaseException | None:
        """What broke the harness or the pod's start."""
        return self._life.exception() if self._life and self._life.done() and not self._life.cancelled() else None

    @property
    def pid(self) -> int:
        """Of the main container's process."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """The end of the main container's log."""
        return self._process.tail() if self._process else f"{self.name} has not started"

    async def done(self) -> None:
        """Waits for a Job's pod: all containers at once, each until it ends with 0."""
        volumes = self._volumes()
        await asyncio.gather(*(self._to_end(container, volumes) for container in self.pods.spec["containers"]))

    async def execute(self, command: list[str]) -> str:
        """As `kubectl exec` does: one more process with the main container's image, variables and mounts; its log."""
        main = {**self.pods.main, "name": f"exec-{len(list(self._folder.iterdir()))}", "command": command, "args": []}
        process = self._run(main, self._mounted)
        status = await self._end_of(process)
        assert status == 0, process.tail()
        return process.tail()

    async def delete(self) -> None:
        """preStop, SIGTERM, and after terminationGracePeriodSeconds in all the end by force."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.terminating = True
        self._node.changed()
        grace = self.pods.spec.get("terminationGracePeriodSeconds", 30)
        pause = self.pods.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if self._process is not None and self.ready:
            await asyncio.sleep(min(pause, grace))
        self._forget()
        if self._process is not None:
            left = max(2.0, grace - (loop.time() - began))  # the kubelet grants two seconds at least
            self.exits.append(await loop.run_in_executor(self._node.threads, self._process.stop, left))
        self.ready = self.present = False
        self.ended_after = loop.time() - began
        self._node.changed()

    async def kill(self) -> None:
        """The end without further ado, as when the node goes."""
        self._forget()
        if self._process is not None and self._process.running:
            os.kill(self._process.pid, signal.SIGKILL)
            await self._end_of(self._process)

    def _forget(self) -> None:
        for task in (self._life, *self._watch):
            if task is not None:
                task.cancel()

    async def _live(self) -> None:
        volumes = self._mounted = self._volumes()
        for container in self.pods.spec.get("initContainers", []):
            await self._to_end(container, volumes)
        backoff = 10.0
        while True:
            self._process = self._run(self.pods.main, volumes)
            self._watch = [asyncio.create_task(self._probe())]
            status = await self._end_of(self._process)
            for task in self._watch:
                task.cancel()
            self.exits.append(status)
            self.restarts += 1
            self._told(False)
            await asyncio.sleep(backoff)
            backoff = min(300.0, 2 * backoff)

    async def _probe(self) -> None:
        def where(probe: Object) -> tuple[Object, str, int]:
            port = port_number(self.pods, (probe.get("grpc") or probe["tcpSocket"])["port"])
            assert port is not None
            return probe, self.address, port

        main = self.pods.main
        if not await probes.until_started(*where(main["startupProbe"])):
            return self._restart()
        self._watch.append(
            asyncio.create_task(probes.follow(*where(main["readinessProbe"]), self._told, False), name="readiness")
        )
        await probes.follow(*where(main["livenessProbe"]), lambda alive: None if alive else self._restart(), True)
        return None

    def _told(self, ready: bool) -> None:
        self.ready = ready
        self.became_ready = asyncio.get_running_loop().time() if ready else math.inf
        self._node.changed()

    def _restart(self) -> None:
        assert self._process is not None
        if self._process.running:
            os.kill(self._process.pid, signal.SIGTERM)

    async def _to_end(self, container: Object, volumes: dict[str, Path]) -> None:
        process = self._run(container, volumes)
        status = await self._end_of(process)
        if status != 0:
            raise RuntimeError(f"{self.name}/{container['name']} ended with {status}. {process.tail()}")

    async def _end_of(self, process: Process) -> int:
        def ended() -> int:
            process.join()
            return process.stop()  # waits for the rest of its log, too

        return await asyncio.get_running_loop().run_in_executor(self._node.threads, ended)

    def _volumes(self) -> dict[str, Path]:
        storage, secrets = self._node.folder / "claims", self._node.folder / "secrets"
        self._folder.mkdir(parents=True, exist_ok=True)
        return {
            volume["name"]: folder(volume, self._m, storage, self._folder, self.address, secrets)
            for volume in self.pods.spec.get("volumes", [])
        }

    def _run(self, container: Object, volumes: dict[str, Path]) -> Process:
        name = container["image"].partition(":")[0]
        environment = {**images.variables(name), "HOSTNAME": self.name, **self._environment(container)}
        context = {**self.pods.spec["securityContext"], **container["securityContext"]}
        nowhere, root = self._folder / "nowhere", self._folder / f"root-{container['name']}-{self.restarts}"
        nowhere.mkdir(exist_ok=True)
        root.mkdir()
        command = [*container.get("command", []), *container.get("args", [])]
        spec: dict[str, Any] = {
            "root": str(root),
            "image": images.filesystem(name, self._node.models, nowhere),
            "files": {
                "/etc/resolv.conf": self._node.resolv_conf,
                "/etc/hosts": f"127.0.0.1 localhost\n{self.address} {self.name}\n",
                "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",  # as in the image: the pod's user has no name
                "/etc/group": "root:x:0:\n",
            },
            "volumes": [
                [str(volumes[mount["name"]]), mount["mountPath"], not mount.get("readOnly", False)]
                for mount in container.get("volumeMounts", [])
            ],
            "user": context["runAsUser"],
            "group": context["runAsGroup"],
            "directory": "/app" if name.startswith("winnow") else "/",
            "environment": environment,
            "command": [_expand(word, environment) for word in command],
        }
        file = self._folder / f"{container['name']}-{self.restarts}.json"
        file.write_text(json.dumps(spec))
        return Process(
            f"{self.name}/{container['name']}", [sys.executable, _SANDBOX, file], {}, file.with_suffix(".log")
        )

    def _environment(self, container: Object) -> dict[str, str]:
        known: dict[str, str] = {}
        for name, value in self._m.settings(container).items():
            known[name] = _expand(value, known) if value is not None else self._field(container, name)
        return {name: narrow(value, self.address) for name, value in known.items()}

    def _field(self, container: Object, name: str) -> str:
        (source,) = [v["valueFrom"] for v in container["env"] if v["name"] == name]
        if source.get("fieldRef", {}).get("fieldPath") == "status.podIP":
            return self.address
        if source.get("resourceFieldRef", {}).get("resource") == "limits.cpu":
            return str(math.ceil(quantity(container["resources"]["limits"]["cpu"])))
        raise NotImplementedError(f"{name}: {source}")


def _expand(text: str, known: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: known.get(match[1], match[0]), text)
