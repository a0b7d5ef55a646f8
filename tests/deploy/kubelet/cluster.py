"""A cluster of one machine: what `kubectl apply` asks for, brought about by real processes on loopback addresses.

Simulated are the API server (manifests are read directly), the scheduler (there is one node with room for all), the
controllers (the loops below), kube-proxy and DNS. Real are the processes, their files, users and variables, the
probes, preStop, SIGTERM and grace, and every byte between them.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.deploy.kubelet.names import Names
from tests.deploy.kubelet.pod import Node, Pod
from tests.deploy.kubelet.proxy import ServiceAddress
from tests.deploy.manifests import Manifests, Object, Pods, port_number, selects

_BLOCKS = range(10, 250)  # of 127.0.0.0/8, a cluster takes 127.BLOCK.0.0/16
_DOMAIN = ".winnow.svc.cluster.local"
# As the kubelet writes it into every pod.
_RESOLV = "nameserver {}\nsearch winnow.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"


class Changed:
    """Lets many wait for the next change of anything."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wakes all who wait."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Waits for the next one."""
        await self._event.wait()


class Cluster:
    """An async context manager: everything that was started is gone when it is left."""

    def __init__(self, manifests: Manifests, folder: Path, models: Path) -> None:
        self.manifests = manifests
        self.changed = Changed()
        self.deployments: dict[str, Deployment] = {}
        self.pods: list[Pod] = []
        """Every pod that ever was."""
        self.secrets = folder / "secrets"
        self._threads = ThreadPoolExecutor(64)
        self._folder, self._models = folder, models
        self._numbers = itertools.count(1)
        self._names: Names | None = None
        self._addresses: dict[str, str] = {}
        self._proxies: list[ServiceAddress] = []
        self._jobs: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Cluster:
        for block in _BLOCKS:
            dns = f"127.{block}.0.10"
            try:
                self._names = await Names.serve(dns, self.resolve)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue  # another run's cluster
            self._block = f"127.{block}"
            self._node = Node(self._folder, self._models, _RESOLV.format(dns), self._threads, self.changed.tell)
            return self
        raise RuntimeError("every block of loopback addresses is taken")

    async def __aexit__(self, *_: object) -> None:
        for job in self._jobs:
            job.cancel()
        for proxy in self._proxies:
            await proxy.close()
        await asyncio.gather(*(pod.kill() for pod in self.pods))
        assert self._names is not None
        self._names.close()
        self._threads.shutdown()

    async def apply(self, without: frozenset[str] = frozenset()) -> None:
        """Creates everything at once, as `kubectl apply` does, and returns when all is ready and all Jobs are done.

        Workloads named in `without` are left out.
        """
        for number, service in enumerate(self.manifests.all("Service"), 1):
            if service["spec"].get("clusterIP") != "None":
                await self._serve(service, f"{self._block}.2.{number}")
        for pods in self.manifests.pods():
            replicas = self._spec(pods).get("replicas", 1)
            if pods.name in without:
                continue
            if pods.kind == "Job":
                self._jobs.append(asyncio.create_task(self.pod(pods).done()))
            elif pods.kind == "StatefulSet":
                for number in range(replicas):
                    self.pod(pods, f"{pods.name}-{number}").start()
            else:
                self.deployments[pods.name] = Deployment(self, pods, self._spec(pods)["strategy"]["rollingUpdate"])
        await asyncio.gather(
            *self._jobs,
            *(d.scale(self._spec(d.pods).get("replicas", 1)) for d in self.deployments.values()),
            self.until(lambda: all(pod.ready for pod in self.pods if pod.pods.kind != "Job")),
        )

    def pod(self, pods: Pods, name: str | None = None) -> Pod:
        """A new pod of a workload, with an address of its own; not started yet."""
        number = next(self._numbers)
        name = name or f"{pods.name}-{number}"
        template = Pods(pods.kind, pods.name, pods.labels, copy.deepcopy(pods.spec))
        for claim in self._spec(pods).get("volumeClaimTemplates", []):
            volume = claim["metadata"]["name"]
            source = {"claimName": f"{volume}-{name}"}
            template.spec["volumes"].append({"name": volume, "persistentVolumeClaim": source})
        pod = Pod(name, f"{self._block}.1.{number}", template, self.manifests, self._node)
        self.pods.append(pod)
        return pod

    async def until(self, holds: object) -> None:
        """Waits until `holds()`; raises where a pod failed or its process ended by itself: here nothing should."""
        assert callable(holds)
        while not holds():
            for pod in self.pods:
                if pod.failed:
                    raise pod.failed
                if pod.restarts:
                    raise RuntimeError(f"{pod.name} ended by itself with {pod.exits}. {pod.log()}")
            await self.changed.wait()

    def ready(self, service: str) -> list[Pod]:
        """The pods behind a Service that take new connections."""
        selector = self.manifests.get("Service", service)["spec"]["selector"]
        return [p for p in self.pods if p.ready and not p.terminating and selects(selector, p.labels)]

    def address(self, service: str) -> str:
        """HOST:PORT of a Service's own address."""
        port = self.manifests.get("Service", service)["spec"]["ports"][0]["port"]
        return f"{self._addresses[service]}:{port}"

    def resolve(self, name: str) -> list[str] | None:
        """What the cluster's DNS answers."""
        if not name.endswith(_DOMAIN):
            return None
        *pod, service = name.removesuffix(_DOMAIN).split(".")
        if service not in {thing["metadata"]["name"] for thing in self.manifests.all("Service")}:
            return None
        if service in self._addresses:
            return [self._addresses[service]]
        spec = self.manifests.get("Service", service)["spec"]
        published = spec.get("publishNotReadyAddresses", False)
        pods = [p for p in self.pods if p.present and selects(spec["selector"], p.labels)] if published else None
        return [p.address for p in pods or self.ready(service) if not pod or pod[0] == p.name] or None

    def _spec(self, pods: Pods) -> Object:
        spec: Object = self.manifests.get(pods.kind, pods.name)["spec"]
        return spec

    async def _serve(self, service: Object, address: str) -> None:
        name = service["metadata"]["name"]
        self._addresses[name] = address
        for port in service["spec"]["ports"]:

            def ready(target: int | str = port["targetPort"]) -> list[tuple[str, int]]:
                return [(p.address, port_number(p.pods, target) or 0) for p in self.ready(name)]

            proxy = ServiceAddress(ready)
            await proxy.serve(address, port["port"])
            self._proxies.append(proxy)


class Deployment:
    """Keeps as many pods as it is told, of the latest template, by the rules of a rolling update."""

    def __init__(self, cluster: Cluster, pods: Pods, strategy: dict[str, int]) -> None:
        self.pods = pods
        self._cluster = cluster
        self._surge, self._unavailable = strategy["maxSurge"], strategy["maxUnavailable"]
        self._replicas = 0
        self._revision = 0
        self._live: list[tuple[int, Pod]] = []
        self._going: set[asyncio.Task[None]] = set()

    @property
    def current(self) -> list[Pod]:
        """Pods that are not on their way out, the oldest first."""
        return [pod for _, pod in self._live]

    async def scale(self, replicas: int) -> None:
        """Returns when there are so many, all ready, and those that had to go are gone."""
        self._replicas = replicas
        await self._settle()

    async def roll(self) -> None:
        """Replaces every pod, as after a change of the template; returns when the last old one is gone."""
        self._revision += 1
        await self._settle()

    async def _settle(self) -> None:
        while not self._settled():
            self._step()
            if not self._settled():
                await self._cluster.until(self._something_to_do)
        await asyncio.gather(*self._going)

    def _settled(self) -> bool:
        return len(self._live) == self._replicas and all(r == self._revision and p.ready for r, p in self._live)

    def _something_to_do(self) -> bool:
        return self._settled() or bool(self._missing() or self._superfluous())

    def _missing(self) -> int:
        new = sum(revision == self._revision for revision, _ in self._live)
        return max(0, min(self._replicas - new, self._replicas + self._surge - len(self._live)))

    def _superfluous(self) -> list[Pod]:
        """Those that may go now: more than asked for, or old where enough others are ready."""
        new = [pod for revision, pod in self._live if revision == self._revision]
        old = [pod for revision, pod in self._live if revision != self._revision]
        going = sorted(new, key=lambda pod: pod.became_ready)[self._replicas :]
        spare = sum(pod.ready for pod in (*new, *old)) - (self._replicas - self._unavailable)
        for pod in old:
            if not pod.ready:
                going.append(pod)
            elif spare > 0:
                going.append(pod)
                spare -= 1
        return going

    def _step(self) -> None:
        for _ in range(self._missing()):
            pod = self._cluster.pod(self.pods)
            self._live.append((self._revision, pod))
            pod.start()
            self._cluster.changed.tell()
        for pod in self._superfluous():
            self._live = [(r, p) for r, p in self._live if p is not pod]
            task = asyncio.create_task(pod.delete())
            self._going.add(task)
            task.add_done_callback(self._going.discard)
