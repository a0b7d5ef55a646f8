"""What the running pods really do: whom they are connected to, and what they export."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

from tests.deploy.kubelet.cluster import Cluster
from tests.deploy.kubelet.pod import Pod
from tests.deploy.manifests import port_number
from tests.deploy.network_policies import Edge

_ESTABLISHED = "01"


def connections(cluster: Cluster) -> set[Edge]:
    """Who among the running pods is connected to whose port at this moment, by the kernel's tables."""
    running = {pod.address: pod for pod in cluster.pods if pod.present and pod.pods.kind != "Job"}
    remotes = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[2].split(":")
            if fields[3] == _ESTABLISHED:
                remotes[fields[9]] = (_dotted(address), int(port, 16))
    edges = set()
    for pod in running.values():
        for inode in _sockets(pod.pid):
            address, number = remotes.get(inode, ("", 0))
            other = running.get(address)
            # Of a connection's two ends, the one whose remote port is a listed port is the caller's.
            if other is not None and port_number(other.pods, number) is not None:
                edges.add(Edge(pod.pods.name, other.pods.name, number))
    return edges


def metrics(pod: Pod) -> str:
    """What a pod's Prometheus endpoint says."""
    url = f"http://{pod.address}:{port_number(pod.pods, 'metrics')}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def answered(pod: Pod, method: str) -> float:
    """How many calls of an RPC (its full name) a pod has answered."""
    return sum(
        float(line.rpartition(" ")[2])
        for line in metrics(pod).splitlines()
        if line.startswith("rpc_server_call_duration_seconds_count{") and f'rpc_method="{method}"' in line
    )


def _sockets(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def _dotted(address: str) -> str:
    raw = bytes.fromhex(address[-8:])[::-1]  # of an IPv6 address that maps an IPv4 one, the last word
    return ".".join(map(str, raw))
