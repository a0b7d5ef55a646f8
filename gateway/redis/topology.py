"""The servers behind a Redis URL, a single one or the masters of a cluster, and the connections to them."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, RedisClusterException, RedisError

from gateway.redis.faults import FaultLog
from gateway.redis.node import Batch, Node
from gateway.redis.workarounds import UNBOUNDED, cluster_errors, response_callbacks

# The errors of a call that no server answers. ResponseError, a refusal by a live server, is a RedisError too: catch it
# first if the difference matters.
Unreachable = (RedisError, OSError, asyncio.TimeoutError)

# A failure to connect that takes longer is slow: calls that try one after the other would add up their waits.
_SLOW_S = 0.1
# For this long after a slow failure to connect, calls fail at once.
_PAUSE_S = 1.0
# For replies that are outstanding when the client is closed; no caller waits for them.
_LAST_REPLIES_S = 1.0

log = logging.getLogger("winnow.redis")


class Topology:
    """Connects when it is first used. The arguments are those of `RedisClient`."""

    def __init__(self, url: str, timeout_s: float, faults: FaultLog, connections: int) -> None:
        scheme = urlsplit(url).scheme
        self._declared_cluster = scheme.endswith("+cluster")
        self._url = url.replace("+cluster://", "://", 1)
        self._timeout_s = timeout_s
        self._faults = faults
        self._connections = connections
        self._connected = False
        self._cluster: RedisCluster | None = None
        self._nodes: dict[str, Node] = {}  # by name; "" is the single server
        self._attempt: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._failed_at = -_PAUSE_S
        self._refreshing: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Connects, and finds out whether this is a cluster. Raises one of `Unreachable`.

        Calls during an attempt share it, and its failure.
        """
        if self._connected:
            return
        if self._attempt is None:
            if self._failure is not None and asyncio.get_running_loop().time() < self._failed_at + _PAUSE_S:
                raise self._failure
            self._attempt = asyncio.create_task(self._connect(), name="redis-connect")
            began_at = asyncio.get_running_loop().time()
            self._attempt.add_done_callback(lambda attempt: self._attempted(attempt, began_at))
        attempt = self._attempt
        await asyncio.wait({attempt})
        if attempt.cancelled():
            raise aioredis.ConnectionError("the client was closed")
        attempt.result()

    def _attempted(self, attempt: asyncio.Task[None], began_at: float) -> None:
        self._attempt, now = None, asyncio.get_running_loop().time()
        error = None if attempt.cancelled() else attempt.exception()
        server = _address(parse_url(self._url))
        if error is not None:
            self._faults.failed(server, error)
        elif not attempt.cancelled():
            self._faults.worked(server)
        self._failure, self._failed_at = (error if now > began_at + _SLOW_S else None), now

    async def _connect(self) -> None:
        with cluster_errors():
            async with asyncio.timeout(self._timeout_s):
                if self._declared_cluster:
                    await self._connect_cluster()
                else:
                    await self._connect_any()
        self._connected = True

    async def _connect_any(self) -> None:
        node = self._node_at()
        batch = Batch([("INFO", "cluster")])
        try:
            await node.send(batch)
            [info] = batch.results
            if isinstance(info, Exception):
                raise info
            clustered = info.get("cluster_enabled")
        except BaseException:
            await node.close()
            raise
        if clustered:
            await node.close()
            await self._connect_cluster()
        else:
            self._nodes[""] = node

    async def _connect_cluster(self) -> None:
        # It only keeps the map of slots. All other commands use our own connections.
        cluster = RedisCluster.from_url(
            self._url,
            protocol=2,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            max_connections=UNBOUNDED,
            require_full_coverage=False,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            await cluster.initialize()
        except BaseException:
            await cluster.aclose()
            raise
        self._cluster = cluster

    def _node_at(self, host: str | None = None, port: int | None = None) -> Node:
        options: dict[str, Any] = {
            **parse_url(self._url),
            "protocol": 2,  # the same flat replies from every server version
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": self._timeout_s,
            "max_connections": UNBOUNDED,
        }
        if host is not None:
            options |= {"host": host, "port": port}
        pool = ConnectionPool(**options)
        return Node(_address(options), pool, self._connections, response_callbacks(pool), self._faults, self._run)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a round trip to its end even if its caller is cancelled: cut off, it would cost the connection."""
        task = asyncio.create_task(work, name="redis")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the caller may be gone

    async def moved(self, error: MovedError) -> None:
        """Updates the map of slots from a MOVED reply."""
        if self._cluster is not None:
            with suppress(KeyError):  # a slot that no server had
                await self._cluster.nodes_manager.move_slot(error)

    def refresh(self, lost: str) -> asyncio.Task[None]:
        """Reads the map of slots again in the background, from `lost` last."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh(lost), name="redis-slots")
        return self._refreshing

    async def _refresh(self, lost: str) -> None:
        assert self._cluster is not None
        try:
            with cluster_errors():
                await self._cluster.nodes_manager.initialize(last_failed_node_name=lost)
        except Unreachable as error:
            log.debug("cannot read the cluster's slots: %s", type(error).__name__)
        finally:
            self._refreshing = None
        for name in [name for name in self._nodes if self._cluster.get_node(node_name=name) is None]:
            await self._nodes.pop(name).close()

    def node(self, name: str) -> Node | None:
        """The server of that name; None for "" if this is a cluster."""
        if name not in self._nodes and name:
            host, _, port = name.rpartition(":")
            self._nodes[name] = self._node_at(host, int(port))
        return self._nodes.get(name)

    @property
    def connected(self) -> bool:
        """Whether `connect` has succeeded."""
        return self._connected

    @property
    def clustered(self) -> bool:
        """Whether this is a cluster. Only after `connect`."""
        return self._cluster is not None

    @property
    def in_flight(self) -> int:
        """Number of round trips under way."""
        return len(self._running)

    @property
    def masters(self) -> int:
        """Number of servers that hold data; 1 for a single server. Only after `connect`."""
        return len(self._cluster.get_primaries()) if self._cluster else 1

    def master_of(self, key: str | bytes) -> str:
        """Name of the server that holds `key`; "" for a single server, or if none holds it. Only after `connect`."""
        if self._cluster is None:
            return ""
        try:
            node = self._cluster.get_node_from_key(cast(str, key))
        except RedisClusterException:
            return ""
        return node.name if node else ""

    async def close(self) -> None:
        """Closes all connections, after a last short wait for the round trips under way."""
        for task in (self._attempt, self._refreshing):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self._running:
            await asyncio.wait(self._running, timeout=min(self._timeout_s, _LAST_REPLIES_S))
        for task in set(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for node in self._nodes.values():
            await node.close()
        if self._cluster is not None:
            await self._cluster.aclose()
        self._nodes, self._cluster, self._connected = {}, None, False


def _address(options: Mapping[str, Any]) -> str:
    """The address of a server: HOST:PORT, or the path of its socket."""
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
