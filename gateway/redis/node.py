"""One Redis server: a bounded number of connections, and a queue in front of them.

redis-py's pool raises when all its connections are in use. Here a caller waits for its turn, for as long as it can.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.redis.faults import FaultLog
from gateway.redis.workarounds import transport_of

Command = tuple[str | bytes | int | float, ...]
Run = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]

# What takes longer to fail would hold up all who try one after the other.
SLOW_S = 0.1
# After a slow failure calls fail at once for so long: those that one request makes in a row, and those that come while
# the ones before them fail, would otherwise wait for the same silence again.
PAUSE_S = 1.0


class QueueTimeoutError(RedisError):
    """All connections were in use for as long as the call could wait: too much is asked at once of a live server."""


class Batch:
    """Commands for one server, in one pipeline; the replies so far, and why there are no more."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.replies: list[Any] = []
        self.missing: Exception = QueueTimeoutError("no connection was free in time")

    @property
    def results(self) -> list[Any]:
        """For each command its reply, or an exception: a refusal, or why there is no reply."""
        return self.replies + [self.missing] * (len(self.commands) - len(self.replies))


class Node:
    """Pipelines to one server.

    Args:
        name: Its address, for the log.
        pool: Its connections; nobody else takes any.
        connections: How many are used at once.
        callbacks: What redis-py makes of some commands' replies, by command.
        faults: Where it is said what is wrong with it.
        run: Starts a task that lives on when its caller gives up: cut off in the middle it would cost a connection.
    """

    def __init__(
        self,
        name: str,
        pool: ConnectionPool,
        connections: int,
        callbacks: Mapping[str, Callable[[Any], Any]],
        faults: FaultLog,
        run: Run,
    ) -> None:
        self._name = name
        self._pool = pool
        self._callbacks = callbacks
        self._faults = faults
        self._run = run
        self._turns = asyncio.Semaphore(connections)
        self._closed = False
        self._heard_at = self._failed_at = -PAUSE_S
        self._failure: Exception | None = None

    async def send(self, batch: Batch) -> None:
        """Sends a batch and takes its replies as they come. What goes wrong stands in its results.

        Whoever waits for a connection while the server is silent fails together with those that have one.
        """
        loop = asyncio.get_running_loop()
        came_at = loop.time()
        if self._failure is not None and came_at < self._failed_at + PAUSE_S:
            batch.missing = self._failure
            return
        await self._turns.acquire()
        if self._failure is not None and came_at <= self._failed_at:
            self._turns.release()
            batch.missing = self._failure
            return
        batch.missing = RedisTimeoutError("no answer in time")
        task = self._run(self._round_trip(batch))
        task.add_done_callback(lambda _: self._turns.release())
        await asyncio.wait({task})
        if task.cancelled():
            batch.missing = RedisConnectionError("the client was closed")
        else:
            task.result()

    async def _round_trip(self, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        try:
            try:
                await self._exchange(batch)
            except RedisConnectionError as error:
                # The connection had died since its last use. A refusal (its subclasses) is not worth another attempt.
                if type(error) is not RedisConnectionError or batch.replies or self._closed:
                    raise
                await self._exchange(batch)
        except (RedisError, OSError) as error:
            batch.missing = error
            self._faults.failed(self._name, error)
            if self._heard_at < began_at < loop.time() - SLOW_S:
                self._failed_at, self._failure = loop.time(), error

    async def _exchange(self, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        connection: Any = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        transport = transport_of(connection)
        stale = True
        try:
            await connection.send_packed_command(connection.pack_commands(batch.commands))
            for command in batch.commands:
                try:
                    reply = await connection.read_response()
                except ResponseError as error:
                    reply = error
                    self._faults.failed(self._name, error, command)
                else:
                    self._faults.worked(self._name, command)
                    callback = self._callbacks.get(str(command[0]))
                    reply = callback(reply) if callback else reply
                batch.replies.append(reply)
                self._heard_at, self._failure = loop.time(), None
            # A server that has become a replica: its name may lead to another by now.
            stale = any(isinstance(reply, ReadOnlyError) for reply in batch.replies)
        finally:
            # A round trip may outlive its node: nobody would ever close what it leaves in the pool.
            if stale or self._closed:
                await connection.disconnect(nowait=True)
                transport.abort()
            await self._pool.release(connection)

    async def close(self) -> None:
        """Close all connections; those that are in use with the end of their round trip at the latest."""
        self._closed = True
        await self._pool.disconnect()
