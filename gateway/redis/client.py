"""One client for Redis: a single server or a cluster, with strict timeouts and no retry of what was not answered.

Whoever calls decides what a failure means: the cache shrugs it off, the index degrades.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.redis.faults import FaultLog
from gateway.redis.node import PAUSE_S, SLOW_S, Batch, Command, Node, QueueTimeoutError

__all__ = ["Command", "NotReplicatedError", "QueueTimeoutError", "RedisClient", "Unreachable"]

# What a call can fail with for want of a server that answers. ResponseError, a refusal by a live server, is a
# RedisError too: catch it first where the difference matters.
Unreachable = (RedisError, OSError, asyncio.TimeoutError)

# Replicas in step acknowledge within a round trip; WAIT must give up before the connection does.
_WAIT_MS = 1000
# Of one command from node to node while a cluster moves slots.
_REDIRECTS = 8
_MOVING_S = 0.05
# For what was sent and is not answered when the client is closed; nobody waits for it.
_LAST_REPLIES_S = 1.0
# The server is away, and another may have its slots.
_AWAY = (aioredis.ConnectionError, RedisTimeoutError, ClusterDownError)
_UNBOUNDED = 1 << 30  # redis-py raises at its own limit; ours waits

log = logging.getLogger("winnow.redis")


class NotReplicatedError(RedisError):
    """A write has reached its master, but not as many replicas as were asked for."""


class RedisClient:
    """Connects lazily, so a Redis that is down stops nobody from starting.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with credentials; a cluster is recognised by asking it.
            `redis+cluster://` and `rediss+cluster://` say so beforehand.
        timeout_s: Longest wait for a connection, and for the answer to one command.
        faults: Where it is said what is wrong with it.
        connections: Most connections to one server. Calls beyond wait for their turn, as long as the server answers.
    """

    def __init__(self, url: str, timeout_s: float, faults: FaultLog | None = None, connections: int = 64) -> None:
        scheme = urlsplit(url).scheme
        self._declared_cluster = scheme.endswith("+cluster")
        self._url = url.replace("+cluster://", "://", 1)
        self._timeout_s = timeout_s
        self._faults = faults or FaultLog("redis", "its URL")
        self._connections = connections
        self._connected = False
        self._cluster: RedisCluster | None = None
        self._nodes: dict[str, Node] = {}  # by name; "" is the single server
        self._attempt: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._failed_at = -PAUSE_S
        self._looking: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Connect, and find out whether this is a cluster. Raises one of `Unreachable`.

        All who come during an attempt share it, and its failure.
        """
        if self._connected:
            return
        if self._attempt is None:
            if self._failure is not None and asyncio.get_running_loop().time() < self._failed_at + PAUSE_S:
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
        self._failure, self._failed_at = (error if now > began_at + SLOW_S else None), now

    async def _connect(self) -> None:
        with _plain_errors():
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
            clustered = _good(batch.results[0]).get("cluster_enabled")
        except BaseException:
            await node.close()
            raise
        if clustered:
            await node.close()
            await self._connect_cluster()
        else:
            self._nodes[""] = node

    async def _connect_cluster(self) -> None:
        # It keeps the map of slots; all commands but those for the map go over our own connections.
        cluster = RedisCluster.from_url(
            self._url,
            protocol=2,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            max_connections=_UNBOUNDED,
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
            "protocol": 2,  # flat replies on every server version
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": self._timeout_s,
            "max_connections": _UNBOUNDED,
        }
        if host is not None:
            options |= {"host": host, "port": port}
        pool = ConnectionPool(**options)
        return Node(_address(options), pool, self._connections, _callbacks(pool), self._faults, self._run)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a round trip to its end, whatever becomes of its caller: cut off it would cost a connection."""
        task = asyncio.create_task(work, name="redis")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: its caller may be gone

    async def command(self, *args: str | bytes | int | float) -> Any:
        """One command; bytes in, bytes out. Raises ResponseError where the server refuses, or one of `Unreachable`."""
        [reply] = await self.commands([args])
        return _good(reply)

    async def commands(
        self, commands: Sequence[Command], replicas: int = 0, budget_s: float | None = None, at_once: int = 1
    ) -> list[Any]:
        """Several commands, each on one key or one hash tag; not atomic.

        Gives a reply for each; where one failed, its exception stands in its place, so that a server that is down takes
        nothing from the others: QueueTimeoutError where there was no turn in time, TimeoutError where there was no
        answer. Raises one of `Unreachable` where there is no connection to anything.

        Args:
            commands: Those for the same server travel together.
            replicas: A write that not so many have acknowledged in time is NotReplicatedError.
            budget_s: Longest wait in all, that for a turn included; None: as long as the caller waits.
            at_once: Most pipelines that they make for one server, side by side. 1 keeps their order.
        """
        replies: list[Any] = [RedisTimeoutError("not connected in time") for _ in commands]
        if commands:
            with suppress(TimeoutError):
                async with asyncio.timeout(budget_s):
                    await self._commands(commands, replicas, at_once, replies)
        return replies

    async def _commands(self, commands: Sequence[Command], replicas: int, at_once: int, replies: list[Any]) -> None:
        await self.connect()
        left: Sequence[int] = range(len(commands))
        for _ in range(_REDIRECTS):
            by_place: dict[_Place, list[int]] = defaultdict(list)
            for position in left:
                by_place[self._place(commands[position], replies[position])].append(position)
            asked = [
                self._ask(place, part, commands, replicas, replies)
                for place, positions in by_place.items()
                for part in _parts(positions, at_once)
            ]
            again = await asyncio.gather(*asked)
            left = [position for positions in again for position in positions]
            if not left:
                return

    def _place(self, command: Command, last: Any) -> "_Place":
        """Where a command goes, after what came of it `last`."""
        if isinstance(last, AskError) and not isinstance(last, MovedError):
            return _Place(f"{last.host}:{last.port}", asking=True)
        return _Place(self.master_of(_key(command)), asking=False)

    async def _ask(
        self,
        place: "_Place",
        positions: Sequence[int],
        commands: Sequence[Command],
        replicas: int,
        replies: list[Any],
    ) -> Sequence[int]:
        """Puts the results of one pipeline at their positions of `replies`, also when it is cancelled.

        Gives the positions that have to be asked again, elsewhere.
        """
        node = self._node(place.name)
        if node is None:
            for position in positions:
                replies[position] = ClusterDownError("no server has the slot")
            self._look_again(place.name)
            return ()
        sent = [commands[position] for position in positions]
        step = 2 if place.asking else 1
        batch = Batch(
            # WAIT answers for the writes before it on its own connection.
            [*chain.from_iterable((*[("ASKING",)] * (step - 1), command) for command in sent), *_wait(replicas)]
        )
        try:
            await node.send(batch)
        finally:
            results = batch.results
            for position, result in zip(positions, results[step - 1 :: step], strict=False):
                short = replicas and not isinstance(result, Exception) and not _reached(results[-1], replicas)
                replies[position] = NotReplicatedError() if short else result
        if self._cluster is None:
            return ()
        return await self._again(self._cluster, place, positions, commands, replies)

    async def _again(
        self,
        cluster: RedisCluster,
        place: "_Place",
        positions: Sequence[int],
        commands: Sequence[Command],
        replies: Sequence[Any],
    ) -> Sequence[int]:
        """The positions to be asked again; what a cluster's replies say about its slots is learnt."""
        moved = {reply.slot_id: reply for reply in replies if isinstance(reply, MovedError)}
        for reply in moved.values():
            with suppress(KeyError):  # a slot that nobody had
                await cluster.nodes_manager.move_slot(reply)
        again = [position for position in positions if isinstance(replies[position], AskError | TryAgainError)]
        if any(isinstance(replies[position], TryAgainError) for position in positions):
            await asyncio.sleep(_MOVING_S)
        failed = [position for position in positions if isinstance(replies[position], _AWAY)]
        if failed or moved:
            look = self._look_again(place.name)
            if any(type(replies[position]) is aioredis.ConnectionError for position in failed):
                # The server is gone. Where another has taken over already, it is asked.
                await asyncio.wait({look}, timeout=self._timeout_s)
                again += [position for position in failed if self.master_of(_key(commands[position])) != place.name]
        return again

    def _look_again(self, lost: str) -> asyncio.Task[None]:
        """Learns in the background which server has which slots, `lost` being asked last."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(lost), name="redis-slots")
        return self._looking

    async def _look(self, lost: str) -> None:
        assert self._cluster is not None
        try:
            with _plain_errors():
                await self._cluster.nodes_manager.initialize(last_failed_node_name=lost)
        except Unreachable as error:
            log.debug("the cluster's slots cannot be learnt: %s", type(error).__name__)
        finally:
            self._looking = None
        for name in [name for name in self._nodes if self._cluster.get_node(node_name=name) is None]:
            await self._nodes.pop(name).close()

    def _node(self, name: str) -> Node | None:
        if name not in self._nodes and name:
            host, _, port = name.rpartition(":")
            self._nodes[name] = self._node_at(host, int(port))
        return self._nodes.get(name)

    async def get_many(self, keys: Sequence[bytes], budget_s: float | None = None) -> list[bytes | None]:
        """The values of keys, None where absent. One MGET on a single server; a cluster wants one GET for each slot.

        Raises one of `Unreachable` where no server gave its part in time; None stands in the place of a missing part.
        """
        if not keys:
            return []
        if self._connected and self._cluster is None:
            [reply] = await self.commands([("MGET", *keys)], budget_s=budget_s)
            return cast(list[bytes | None], _good(reply))
        replies = await self.commands([("GET", key) for key in keys], budget_s=budget_s)
        if all(isinstance(reply, Exception) for reply in replies):
            raise replies[0]
        return [reply if isinstance(reply, bytes) else None for reply in replies]

    @property
    def masters(self) -> int:
        """Number of servers that hold data; 1 for a single server. Only after `connect`."""
        return len(self._cluster.get_primaries()) if self._cluster else 1

    def master_of(self, key: str | bytes) -> str:
        """Name of the server that holds `key`, "" where none does. Only after `connect`."""
        if self._cluster is None:
            return ""
        try:
            node = self._cluster.get_node_from_key(cast(str, key))
        except RedisClusterException:
            return ""
        return node.name if node else ""

    async def close(self) -> None:
        """Close all connections, after a last short wait for what is under way."""
        for task in (self._attempt, self._looking):
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


class _Place(NamedTuple):
    """A server, and whether it is only just taking over the slot of the commands that go there."""

    name: str
    asking: bool


@contextmanager
def _plain_errors() -> Iterator[None]:
    """redis-py wraps what is wrong with a cluster into an exception that is no RedisError."""
    try:
        yield
    except RedisClusterException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, RedisError | OSError):
            cause = cause.__cause__ or cause.__context__
        raise cause or ClusterDownError("the cluster cannot be reached") from error


def _address(options: Mapping[str, Any]) -> str:
    """Where a server is: HOST:PORT, or the path of its socket."""
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


def _good(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


def _wait(replicas: int) -> list[Command]:
    return [("WAIT", replicas, _WAIT_MS)] if replicas else []


def _reached(reply: Any, replicas: int) -> bool:
    return isinstance(reply, int) and reply >= replicas


def _parts(positions: Sequence[int], most: int) -> list[Sequence[int]]:
    """At most so many parts, of equal size as far as may be."""
    return [part for start in range(min(most, len(positions))) if (part := positions[start::most])]


def _key(command: Command) -> str | bytes:
    """The first key of a command: scripts name theirs after text and count."""
    key = command[3] if command[0] == "EVAL" else command[1]
    return key if isinstance(key, str | bytes) else str(key)


def _callbacks(pool: ConnectionPool) -> dict[str, Any]:
    """What redis-py makes of replies; but for those on vector sets, which its versions reshape differently."""
    callbacks = aioredis.Redis(connection_pool=pool).response_callbacks
    return {str(name): callback for name, callback in callbacks.items() if not str(name).startswith("V")}
