"""One Redis server: a bounded number of connections, and a queue of calls for them.

redis-py's pool raises if all its connections are in use. Here a call waits for one, for as long as its caller does.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.redis.faults import FaultLog
from gateway.redis.silence import Silence
from gateway.redis.workarounds import transport_of

Command = tuple[str | bytes | int | float, ...]
Run = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class QueueTimeoutError(RedisError):
    """No connection was free for as long as the call could wait: a live server has too many concurrent calls."""


class Batch:
    """Commands for one server, in one pipeline: the replies so far, and the reason if some are missing."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.replies: list[Any] = []
        self.missing: Exception = QueueTimeoutError("no connection was free in time")

    @property
    def results(self) -> list[Any]:
        """For each command its reply, or an exception: a refusal, or the reason for a missing reply."""
        return self.replies + [self.missing] * (len(self.commands) - len(self.replies))


class Node:
    """Pipelines to one server.

    Args:
        name: Its address, for the log.
        pool: Its connections; used by this node only.
        connections: Maximum connections in use.
        callbacks: Conversions of replies, by command.
        faults: Logs what is wrong with the server.
        run: Starts a task that goes on if its caller is cancelled: cut off, it would cost the connection.
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
        self._silence = Silence(self._ping)

    async def send(self, batch: Batch) -> None:
        """Sends a batch and reads its replies as they arrive. Errors are among its results.

        If the server falls silent, calls that wait for a connection fail together with the calls that have one, and
        new calls fail at once until it answers again.
        """
        silent = self._silence.failure
        if silent.done() or not await self._turn(silent):
            batch.missing = silent.result()
            return
        batch.missing = RedisTimeoutError("no answer in time")
        task = self._run(self._round_trip(batch))
        task.add_done_callback(lambda _: self._turns.release())
        await _first(task, silent)
        if not task.done():
            batch.missing = silent.result()
            self._faults.failed(self._name, batch.missing)
        elif task.cancelled():
            batch.missing = RedisConnectionError("the client was closed")
        else:
            task.result()

    async def _turn(self, silent: "asyncio.Future[Exception]") -> bool:
        """Waits for a connection; False if the server falls silent first."""
        if not self._turns.locked():
            return await self._turns.acquire()
        turn = asyncio.ensure_future(self._turns.acquire())
        taken = False
        try:
            await _first(turn, silent)
            taken = turn.done()
        finally:
            if not taken and not turn.cancel():
                self._turns.release()  # it came while this call was cancelled
        return taken

    async def _round_trip(self, batch: Batch) -> None:
        self._silence.began(batch)
        timeout: Exception | None = None
        try:
            try:
                await self._exchange(batch)
            except RedisConnectionError as error:
                # The connection was closed since its last use. A refusal (a subclass) is not retried.
                if type(error) is not RedisConnectionError or batch.replies or self._closed:
                    raise
                await self._exchange(batch)
        except (RedisError, OSError) as error:
            batch.missing = error
            self._faults.failed(self._name, error)
            timeout = error if isinstance(error, RedisTimeoutError) else None
        finally:
            self._silence.ended(batch, timeout)

    async def _ping(self) -> None:
        await self._exchange(Batch([("PING",)]))

    async def _exchange(self, batch: Batch) -> None:
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
                self._silence.heard()
            # The server has become a replica: its name may resolve to another server now.
            stale = any(isinstance(reply, ReadOnlyError) for reply in batch.replies)
        finally:
            # A round trip may outlive its node: a connection that it left in the pool would never be closed.
            if stale or self._closed:
                await connection.disconnect(nowait=True)
                transport.abort()
            await self._pool.release(connection)

    async def close(self) -> None:
        """Closes all connections; those in use at the end of their round trip at the latest."""
        self._closed = True
        self._silence.close()
        await self._pool.disconnect()


async def _first(*futures: "asyncio.Future[Any]") -> None:
    """Waits until one of them is done."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
