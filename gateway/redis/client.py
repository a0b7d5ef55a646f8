"""One client for Redis: a single server or a cluster, with strict timeouts and no retry of what was not answered.

Whoever calls decides what a failure means: the cache shrugs it off, the index degrades.
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

# Replicas in step acknowledge within a round trip; WAIT must give up before the connection does.
_WAIT_MS = 1000
# Of one command from node to node while a cluster moves slots.
_REDIRECTS = 8
_MOVING_S = 0.05
# The server is away, and another may have its slots.
_AWAY = (aioredis.ConnectionError, RedisTimeoutError, ClusterDownError)


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
        self._topology = Topology(url, timeout_s, faults or FaultLog("redis", "its URL"), connections)
        self._timeout_s = timeout_s

    async def connect(self) -> None:
        """Connects, and finds out whether this is a cluster. Raises one of `Unreachable`.

        Callers that come during an attempt share it, and its failure.
        """
        await self._topology.connect()

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
        """Where a command goes, after what came of it `last`."""
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
        """Puts the results of one pipeline at their positions of `replies`, also when it is cancelled.

        Gives the positions that have to be asked again, elsewhere.
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
        return await self._again(place, positions, commands, replies) if self._topology.clustered else ()

    async def _again(
        self,
        place: "_Place",
        positions: Sequence[int],
        commands: Sequence[Command],
        replies: Sequence[Any],
    ) -> Sequence[int]:
        """The positions to be asked again; what a cluster's replies say about its slots is learnt."""
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
                # The server is gone. Where another has taken over already, it is asked.
                await asyncio.wait({look}, timeout=self._timeout_s)
                again += [
                    position for position in failed if self._topology.master_of(_key(commands[position])) != place.name
                ]
        return again

    async def get_many(self, keys: Sequence[bytes], budget_s: float | None = None) -> list[bytes | None]:
        """The values of keys, None where absent. One MGET on a single server; a cluster wants one GET for each slot.

        Raises one of `Unreachable` where no server gave its part in time; None stands in the place of a missing part.
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
    """A server, and whether it is only just taking over the slot of the commands that go there."""

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
    """At most so many parts, of equal size as far as may be."""
    return [part for start in range(min(most, len(positions))) if (part := positions[start::most])]


def _key(command: Command) -> str | bytes:
    """The first key of a command: scripts name theirs after text and count."""
    key = command[3] if command[0] == "EVAL" else command[1]
    return key if isinstance(key, str | bytes) else str(key)
