"""Notices a server that has stopped answering while calls wait for it, and when it answers again.

A process that is stopped, and a network that swallows packets, keep all connections up: without this each call would
wait for its own timeout, one after the other. A server that is busy with one slow command answers PING.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from redis.exceptions import TimeoutError as RedisTimeoutError

_QUIET_S = 0.25  # without any reply while calls wait, after which the server is asked
_ANSWER_S = 0.5  # maximum wait for its answer to PING
_AGAIN_S = 0.1  # between two PINGs to a silent server


class Silence:
    """The calls that a server has not answered yet, and whether it answers at all. Lives on one event loop.

    Args:
        ping: Asks the server.
    """

    def __init__(self, ping: Callable[[], Awaitable[None]]) -> None:
        self._ping = ping
        self._waiting: dict[object, float] = {}  # when each call began, the oldest first
        self._heard_at = -1.0
        self._watch_task: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    @property
    def failure(self) -> "asyncio.Future[Exception]":
        """Done while the server is silent: the error of all calls."""
        return self._failure

    def began(self, call: object) -> None:
        """A call was sent."""
        self._waiting[call] = time.monotonic()
        self._watch()

    def heard(self) -> None:
        """The server has replied to any call."""
        self._heard_at = time.monotonic()

    def ended(self, call: object, timeout: Exception | None = None) -> None:
        """A call has ended. `timeout`: its error if it had no reply in time."""
        began_at = self._waiting.pop(call)
        if timeout is not None and began_at > self._heard_at and not self._failure.done():
            self._failure.set_result(timeout)
            self._watch()

    def close(self) -> None:
        """Asks no more."""
        if self._watch_task is not None:
            self._watch_task.cancel()

    def _watch(self) -> None:
        if self._watch_task is None or self._watch_task.done():
            self._watch_task = asyncio.create_task(self._until_nobody_waits(), name="redis-silence")

    async def _until_nobody_waits(self) -> None:
        while self._waiting or self._failure.done():
            if self._failure.done():
                await self._until_it_answers()
                continue
            quiet_since = max(self._heard_at, next(iter(self._waiting.values())))
            if (wait := quiet_since + _QUIET_S - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            elif not await self._answers() and not self._failure.done():
                self._failure.set_result(RedisTimeoutError("no answer in time"))

    async def _until_it_answers(self) -> None:
        while not await self._answers():  # noqa: ASYNC110 - a server has no event
            await asyncio.sleep(_AGAIN_S)
        self._failure = asyncio.get_running_loop().create_future()

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._ping()
        except (TimeoutError, RedisTimeoutError):
            return False
        except Exception:
            pass  # it refuses, or cannot be reached: the next call learns at once what is wrong
        self.heard()
        return True
