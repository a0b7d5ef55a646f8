"""One door to Redis: a single server or a cluster, with strict timeouts and no retries of its own.

Whoever calls decides what a failure means: the cache shrugs it off, the index degrades.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

# What a call can fail with for want of a server that answers. ResponseError, a refusal by a live server, is a
# RedisError too: catch it first where the difference matters.
Unreachable = (RedisError, OSError, asyncio.TimeoutError)

T = TypeVar("T")
Command = tuple[str | bytes | int | float, ...]


class RedisClient:
    """Connects lazily, so a Redis that is down stops nobody from starting.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with credentials; a cluster is recognised by asking it.
            `redis+cluster://` and `rediss+cluster://` say so beforehand.
        timeout_s: Longest wait for a connection, and for the answer to one command.
        connections: Most connections to one server.
    """

    def __init__(self, url: str, timeout_s: float, connections: int = 64) -> None:
        scheme = urlsplit(url).scheme
        self._declared_cluster = scheme.endswith("+cluster")
        self._url = url.replace("+cluster://", "://", 1)
        self._timeout_s = timeout_s
        self._connections = connections
        self._single: aioredis.Redis | None = None
        self._cluster: RedisCluster | None = None
        self._connecting = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def connect(self) -> None:
        """Connect, and find out whether this is a cluster. Raises one of `Unreachable`."""
        async with self._connecting:
            if self._single or self._cluster:
                return
            if self._declared_cluster:
                await self._connect_cluster()
                return
            # A pooled connection that died since its last use is replaced once; everything else fails at once.
            single = aioredis.Redis.from_url(
                self._url,
                protocol=2,  # flat replies on every server version
                socket_timeout=self._timeout_s,
                socket_connect_timeout=self._timeout_s,
                max_connections=self._connections,
                retry=Retry(NoBackoff(), 1, supported_errors=(aioredis.ConnectionError,)),
            )
            try:
                info = await single.info("cluster")
            except BaseException:
                await single.aclose()
                raise
            if info.get("cluster_enabled"):
                await single.aclose()
                await self._connect_cluster()
            else:
                _plain_replies(single)
                self._single = single

    async def _connect_cluster(self) -> None:
        cluster = RedisCluster.from_url(
            self._url,
            protocol=2,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            max_connections=self._connections,
            require_full_coverage=False,
            retry=Retry(NoBackoff(), 1),
        )
        try:
            await cluster.initialize()
        except BaseException:
            await cluster.aclose()
            raise
        _plain_replies(cluster)
        self._cluster = cluster

    async def command(self, *args: str | bytes | int | float) -> Any:
        """One command; bytes in, bytes out. Raises ResponseError where the server refuses, or one of `Unreachable`."""
        return await self._whole(self._command(args))

    async def _command(self, args: Command) -> Any:
        await self.connect()
        client: Any = self._single or self._cluster
        return await client.execute_command(*args)

    async def _whole(self, call: Coroutine[Any, Any, T]) -> T:
        """Runs a call to its end, whatever becomes of its caller: cut off in the middle it would cost a connection."""
        task = asyncio.create_task(call, name="redis")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: its caller may be gone

    async def commands(self, commands: Sequence[Command]) -> list[Any]:
        """Several commands, each on one key or one hash tag, in one round trip to each server; not atomic.

        Gives a reply for each; where one failed, its exception stands in its place, so that a server that is down takes
        nothing from the others. Raises one of `Unreachable` where there is no connection to anything.
        """
        return await self._whole(self._commands(commands)) if commands else []

    async def _commands(self, commands: Sequence[Command]) -> list[Any]:
        await self.connect()
        if self._single:
            return await _pipelined(self._single.pipeline(transaction=False), commands)
        by_master: dict[str, list[int]] = {}
        for position, command in enumerate(commands):
            by_master.setdefault(self.master_of(_key(command)), []).append(position)
        replies: list[Any] = [None] * len(commands)

        async def ask(positions: list[int]) -> None:
            assert self._cluster is not None
            mine = [commands[position] for position in positions]
            try:
                answers: list[Any] = await _pipelined(self._cluster.pipeline(), mine)
            except Unreachable as error:
                answers = [error] * len(mine)
            for position, answer in zip(positions, answers, strict=True):
                replies[position] = answer

        await asyncio.gather(*(ask(positions) for positions in by_master.values()))
        return replies

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of keys, None where absent. One MGET on a single server; a cluster wants one GET for each slot."""
        if not keys:
            return []
        await self.connect()
        if self._single:
            return cast(list[bytes | None], await self.command("MGET", *keys))
        replies = await self.commands([("GET", key) for key in keys])
        if all(isinstance(reply, Exception) for reply in replies):
            raise replies[0]
        return [reply if isinstance(reply, bytes) else None for reply in replies]

    @property
    def masters(self) -> int:
        """Number of servers that hold data; 1 for a single server. Only after `connect`."""
        return len(self._cluster.get_primaries()) if self._cluster else 1

    def master_of(self, key: str | bytes) -> str:
        """Name of the server that holds `key`, "" where none does. Only after `connect`."""
        name = key if isinstance(key, str) else key.decode("latin-1")
        node = self._cluster.get_node_from_key(name) if self._cluster else None
        return node.name if node else ""

    async def close(self) -> None:
        """Wait for what is under way, which takes no longer than the timeout, and close all connections."""
        await asyncio.gather(*self._running, return_exceptions=True)
        for client in (self._single, self._cluster):
            if client is not None:
                await client.aclose()
        self._single = self._cluster = None


async def _pipelined(pipeline: Any, commands: Sequence[Command]) -> list[Any]:
    for command in commands:
        pipeline.execute_command(*command)
    return cast(list[Any], await pipeline.execute(raise_on_error=False))


def _key(command: Command) -> str | bytes:
    """The first key of a command: scripts name theirs after text and count."""
    key = command[3] if command[0] == "EVAL" else command[1]
    return key if isinstance(key, str | bytes) else str(key)


def _plain_replies(client: Any) -> None:
    """Take from redis-py its reshaping of vector set replies, which differs between its versions."""
    for name in ("VSIM", "VADD", "VREM", "VCARD", "VINFO", "VGETATTR", "VSETATTR"):
        client.response_callbacks.pop(name, None)
