"""The Redis client, for a single server or a cluster. Timeouts are strict; a command without a reply is not retried.

The caller decides what a failure means: to the cache it is a miss, to a search a degradation.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple, cast

import redis.asyncio as aioredis
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.redis.faults import FaultLog
from gateway.redis.node import Batch, Command, QueueTimeoutError
from gateway.redis.topology import Topology, Unreachable

__all__ = ["Command", "NotReplicatedError", "QueueTimeoutError", "RedisClient", "Unreachable"]

# Replicas without lag acknowledge within a round trip. WAIT must time out before the connection does.
_WAIT_MS = 1000
# Maximum redirections of a command while a cluster moves slots.
_REDIRECTS = 8
_MOVING_S = 0.05
# The server is unreachable, and another one may have its slots.
_AWAY = (aioredis.ConnectionError, RedisTimeoutError, ClusterDownError)


class NotReplicatedError(RedisError):
    """A write has reached its master, but fewer replicas than required."""


class RedisClient:
    """Connects when it is first used, so that the gateway starts without Redis.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with credentials. The server is asked whether it is a cluster;
            `redis+cluster://` and `rediss+cluster://` declare it.
        timeout_s: Maximum wait for a connection, and for the reply to one command.
        faults: Logs what is wrong with a server.
        connections: Maximum connections to one server. Further calls queue, for as long as the server replies.
    """

    def __init__(self, url: str, timeout_s: float, faults: FaultLog | None = None, connections: int = 64) -> None:
        self._topology = Topology(url, timeout_s, faults or FaultLog("redis", "its URL"), connections)
        self._timeout_s = timeout_s

    async def connect(self) -> None:
        """Connects, and finds out whether this is a cluster. Raises one of `Unreachable`.

        Callers that come during an attempt share it, and its failure.
        """
        await self._topology.connect()

    async def command(self, *args: str | bytes | int | float, budget_s: float | None = None) -> Any:
        """Runs one command on bytes. Raises ResponseError if the server refuses it, or one of `Unreachable`.

        `budget_s`: maximum wait in total; None: no limit but the time-out.
        """
        [reply] = await self.commands([args], budget_s=budget_s)
        return _good(reply)

    async def commands(
        self, commands: Sequence[Command], replicas: int = 0, budget_s: float | None = None, at_once: int = 1
    ) -> list[Any]:
        """Runs several commands, each on one key or one hash tag; not atomic.

        Returns a reply for each. A command that failed has its exception in the place of its reply, so that a server
        that is down does not affect the others: QueueTimeoutError if no connection was free in time, TimeoutError if
        there was no reply. Raises one of `Unreachable` if no server can be reached.

        Args:
            commands: Commands for the same server share a pipeline.
            replicas: A write that fewer replicas acknowledge in time is NotReplicatedError.
            budget_s: Maximum wait in total, the wait for a connection included; None: no limit.
            at_once: Maximum concurrent pipelines to one server. 1 keeps the order of the commands.
        """
        replies: list[Any] = [RedisTimeoutError("not connected in time") for _ in commands]
        if commands:
            with suppress(TimeoutError):
                async with asyncio.timeout(budget_s):
                    await self._commands(commands, replicas, at_once, replies)
        return replies

    async def _commands(self, commands: Sequence[Command], replicas: int, at_once: int, replies: list[Any]) -> None:
        await self._topology.connect()
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
        """The destination of a command, given its `last` reply."""
        if isinstance(last, AskError) and not isinstance(last, MovedError):
            return _Place(f"{last.host}:{last.port}", asking=True)
        return _Place(self._topology.master_of(_key(command)), asking=False)

    async def _ask(
        self,
        place: "_Place",
        positions: Sequence[int],
        commands: Sequence[Command],
        replicas: int,
        replies: list[Any],
    ) -> Sequence[int]:
        """Writes the results of one pipeline to their positions in `replies`, also if it is cancelled.

        Returns the positions to send again, to another server.
        """
        node = self._topology.node(place.name)
        if node is None:
            for position in positions:
                replies[position] = ClusterDownError("no server has the slot")
            self._topology.refresh(place.name)
            return ()
        sent = [commands[position] for position in positions]
        step = 2 if place.asking else 1
        batch = Batch(
            # WAIT counts the writes before it on the same connection.
            [*chain.from_iterable((*[("ASKING",)] * (step - 1), command) for command in sent), *_wait(replicas)]
        )
        try:
            await node.send(batch)
        finally:
            results = batch.results
            for position, result in zip(positions, results[step - 1 :: step], strict=False):
                short = replicas and not isinstance(result, Exception) and not _reached(results[-1], replicas)
                replies[position] = NotReplicatedError() if short else result
        return await self._again(place, positions, commands, replies) if self._topology.clustered else ()

    async def _again(
        self,
        place: "_Place",
        positions: Sequence[int],
        commands: Sequence[Command],
        replies: Sequence[Any],
    ) -> Sequence[int]:
        """The positions to send again. Updates the map of slots by what the replies say."""
        moved = {reply.slot_id: reply for reply in replies if isinstance(reply, MovedError)}
        for reply in moved.values():
            await self._topology.moved(reply)
        again = [position for position in positions if isinstance(replies[position], AskError | TryAgainError)]
        if any(isinstance(replies[position], TryAgainError) for position in positions):
            await asyncio.sleep(_MOVING_S)
        failed = [position for position in positions if isinstance(replies[position], _AWAY)]
        if failed or moved:
            look = self._topology.refresh(place.name)
            if any(type(replies[position]) is aioredis.ConnectionError for position in failed):
                # The server is gone. If another one has taken over already, the command is sent there.
                await asyncio.wait({look}, timeout=self._timeout_s)
                again += [
                    position for position in failed if self._topology.master_of(_key(commands[position])) != place.name
                ]
        return again

    async def get_many(self, keys: Sequence[bytes], budget_s: float | None = None) -> list[bytes | None]:
        """The values of keys, None for a missing key. One MGET on a single server; on a cluster one GET for each key.

        A value that did not arrive in time is None; if none did, raises one of `Unreachable`.
        """
        if not keys:
            return []
        if self._topology.connected and not self._topology.clustered:
            [reply] = await self.commands([("MGET", *keys)], budget_s=budget_s)
            return cast(list[bytes | None], _good(reply))
        replies = await self.commands([("GET", key) for key in keys], budget_s=budget_s)
        if all(isinstance(reply, Exception) for reply in replies):
            raise replies[0]
        return [reply if isinstance(reply, bytes) else None for reply in replies]

    @property
    def in_flight(self) -> int:
        """Number of round trips under way."""
        return self._topology.in_flight

    @property
    def masters(self) -> int:
        """Number of servers that hold data; 1 for a single server. Only after `connect`."""
        return self._topology.masters

    def master_of(self, key: str | bytes) -> str:
        """Name of the server that holds `key`; "" for a single server, or if none holds it. Only after `connect`."""
        return self._topology.master_of(key)

    async def close(self) -> None:
        """Closes all connections, after a last short wait for the round trips under way."""
        await self._topology.close()


class _Place(NamedTuple):
    """A server, and whether it is importing the slot of the commands (ASK)."""

    name: str
    asking: bool


def _good(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


def _wait(replicas: int) -> list[Command]:
    return [("WAIT", replicas, _WAIT_MS)] if replicas else []


def _reached(reply: Any, replicas: int) -> bool:
    return isinstance(reply, int) and reply >= replicas


def _parts(positions: Sequence[int], most: int) -> list[Sequence[int]]:
    """At most so many parts, of about equal size."""
    return [part for start in range(min(most, len(positions))) if (part := positions[start::most])]


def _key(command: Command) -> str | bytes:
    """The first key of a command. EVAL has its keys after the script and their number."""
    key = command[3] if command[0] == "EVAL" else command[1]
    return key if isinstance(key, str | bytes) else str(key)
