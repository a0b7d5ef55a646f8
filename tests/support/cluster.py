"""A private Redis Cluster on loopback: three masters, three replicas."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from tests.support.redis import RedisProcess, free_port, redis_binary

SLOTS = 16384
MASTERS = 3


class ClusterProcesses:
    """The nodes of a cluster: `nodes[:3]` began as masters, `nodes[3:]` as their replicas, in the same order."""

    def __init__(self) -> None:
        self.nodes: list[RedisProcess] = []
        try:
            self._start()
            self._form()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for _ in range(2 * MASTERS):
            bus = free_port()
            arguments = (
                "--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000",
                "--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0",
            )  # fmt: skip
            self.nodes.append(RedisProcess(redis_binary(), arguments))

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def _form(self) -> None:
        clients = [node.client() for node in self.nodes]
        for number, client in enumerate(clients[:MASTERS]):
            first, last = SLOTS * number // MASTERS, SLOTS * (number + 1) // MASTERS - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        bus_ports = [int(str(client.config_get("cluster-port")["cluster-port"])) for client in clients]
        for node, bus in zip(self.nodes[1:], bus_ports[1:], strict=True):
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        ids = [client.execute_command("CLUSTER", "MYID").decode() for client in clients]
        _until(lambda: all(len(_lines(client)) == 2 * MASTERS for client in clients))
        for number, client in enumerate(clients[MASTERS:]):
            client.execute_command("CLUSTER", "REPLICATE", ids[number])
        _until(lambda: all("cluster_state:ok" in _info(client) for client in clients))
        _until(lambda: all(client.info("replication")["master_link_status"] == "up" for client in clients[MASTERS:]))
        _until(lambda: all(sum("slave" in line for line in _lines(client)) == MASTERS for client in clients))
        for client in clients:
            client.close()

    def is_master(self, node: RedisProcess) -> bool:
        with node.client() as client:
            return str(client.info("replication")["role"]) == "master"

    def until_replaced(self, number: int) -> None:
        """Returns when the replica of master `number` has taken over."""
        _until(lambda: self.is_master(self.nodes[MASTERS + number]))

    def until_whole(self) -> None:
        """Returns when every slot is served and every replica has caught up."""

        def whole() -> bool:
            for node in self.nodes:
                with node.client() as client:
                    replication = client.info("replication")
                    if "cluster_state:ok" not in _info(client):
                        return False
                    if replication["role"] == "slave" and replication["master_link_status"] != "up":
                        return False
            return True

        _until(whole)

    def flush(self) -> None:
        for node in self.nodes:
            if self.is_master(node):
                with node.client() as client:
                    client.flushall()

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _lines(client: redis.Redis) -> list[str]:
    reply = client.execute_command("CLUSTER", "NODES")
    if isinstance(reply, dict):
        return [f"{name} {node['flags']}" for name, node in reply.items()]
    return [line for line in reply.decode().splitlines() if line]


def _info(client: redis.Redis) -> str:
    reply = client.execute_command("CLUSTER", "INFO")
    if isinstance(reply, dict):
        return "\n".join(f"{name}:{value}" for name, value in reply.items())
    return str(reply.decode())


def _until(fact: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits for a fact of another process, which has no event to wait for."""
    end = time.monotonic() + seconds
    while True:
        try:
            if fact():
                return
        except redis.ConnectionError:
            pass
        if time.monotonic() > end:
            raise TimeoutError("the cluster did not get there")
        time.sleep(0.02)


@contextmanager
def redis_cluster() -> Iterator[ClusterProcesses]:
    """A cluster until the block ends."""
    cluster = ClusterProcesses()
    try:
        yield cluster
    finally:
        cluster.close()
