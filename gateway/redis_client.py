"""One door to Redis: a single server or a cluster, with strict timeouts and no retries of its own.

Whoever calls decides what a failure means: the cache shrugs it off, the index degrades.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, RedisError

# What a call can fail with for want of a server that answers. ResponseError, a refusal by a live server, is a
# RedisError too: catch it first where the difference matters.
Unreachable = (RedisError, OSError, asyncio.TimeoutError)

T = TypeVar("T")

# Replicas in step acknowledge within a round trip; WAIT must give up before the connection does.
_WAIT_MS = 1000

Command = tuple[str | bytes | int | float, ...]


class NotReplicatedError(RedisError):
    """A write has reached its master, but not as many replicas as were asked for."""


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
        with _closed_meanwhile():
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

    async def commands(self, commands: Sequence[Command], replicas: int = 0) -> list[Any]:
        """Several commands, each on one key or one hash tag, in one round trip to each server; not atomic.

        Gives a reply for each; where one failed, its exception stands in its place, so that a server that is down takes
        nothing from the others. With `replicas`, a write that not so many replicas have acknowledged in time is
        NotReplicatedError. Raises one of `Unreachable` where there is no connection to anything.
        """
        return await self._whole(self._commands(commands, replicas)) if commands else []

    async def _commands(self, commands: Sequence[Command], replicas: int) -> list[Any]:
        await self.connect()
        by_master: dict[str, list[int]] = {}
        for position, command in enumerate(commands):
            by_master.setdefault(self.master_of(_key(command)), []).append(position)
        replies: list[Any] = [None] * len(commands)

        async def ask(master: str, positions: list[int]) -> None:
            try:
                with _closed_meanwhile():
                    answers = await self._pipeline(master, [commands[position] for position in positions], replicas)
            except Unreachable as error:
                answers = [error] * len(positions)
            for position, answer in zip(positions, answers, strict=True):
                replies[position] = answer

        await asyncio.gather(*(ask(master, positions) for master, positions in by_master.items()))
        return replies

    async def _pipeline(self, master: str, commands: Sequence[Command], replicas: int) -> list[Any]:
        pipeline: Any = self._cluster.pipeline() if self._cluster else cast(Any, self._single).pipeline(False)
        for command in commands:
            pipeline.execute_command(*command)
        if not replicas:
            return cast(list[Any], await pipeline.execute(raise_on_error=False))
        # WAIT answers for the writes before it on its own connection, so nothing may be redirected to another one.
        if self._cluster:
            pipeline.execute_command("WAIT", replicas, _WAIT_MS, target_nodes=self._cluster.get_node(node_name=master))
            *replies, reached = await pipeline.execute(raise_on_error=False, allow_redirections=False)
            for moved in {reply.args[0]: reply for reply in replies if isinstance(reply, MovedError)}.values():
                await self._cluster.nodes_manager.move_slot(moved)
        else:
            pipeline.execute_command("WAIT", replicas, _WAIT_MS)
            *replies, reached = await pipeline.execute(raise_on_error=False)
        if isinstance(reached, int) and reached >= replicas:
            return list(replies)
        return [reply if isinstance(reply, Exception) else NotReplicatedError() for reply in replies]

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


@contextmanager
def _closed_meanwhile() -> Iterator[None]:
    """redis-py closes the connections of a node that failed also under those who are using them.

    Depending on the moment they find no writer (AttributeError) or a closed transport (RuntimeError).
    """
    try:
        yield
    except (AttributeError, RuntimeError) as error:
        raise aioredis.ConnectionError("the connection was closed meanwhile") from error


def _key(command: Command) -> str | bytes:
    """The first key of a command: scripts name theirs after text and count."""
    key = command[3] if command[0] == "EVAL" else command[1]
    return key if isinstance(key, str | bytes) else str(key)


def _plain_replies(client: Any) -> None:
    """Take from redis-py its reshaping of vector set replies, which differs between its versions."""
    for name in ("VSIM", "VADD", "VREM", "VCARD", "VINFO", "VGETATTR", "VSETATTR"):
        client.response_callbacks.pop(name, None)
