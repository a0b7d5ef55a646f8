"""Tokenising beside the event loop: requests wait in two queues for a few threads.

Interactive requests go first, also before the rest of a bulk request that is being tokenised, and bulk requests never
hold all threads. What nobody waits for any more, or what is too late, stops between two pieces of work.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from services.engine.errors import DeadlineTooShort, Draining, Overloaded
from services.engine.text.ends import Pause
from services.engine.types import Priority

T = TypeVar("T")

_CHARACTERS_PER_S = 1e6  # of one thread, about: for the time after which to try again
_BULK_SHARE = 0.75  # of the limit: what bulk requests may fill together
_BULK_TURN = 8  # of so many requests that a thread begins one is a bulk request, or goes on with one, if any waits


class _AbandonedError(Exception):
    """Nobody waits for the result."""


@dataclass(eq=False, slots=True)
class _Job:
    build: Callable[[Pause], Any]
    characters: int
    priority: Priority
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]

    @property
    def abandoned(self) -> bool:
        """Nobody waits for it: true as soon as its caller is cancelled."""
        return self.future.done()

    def check(self) -> None:
        if self.abandoned:
            raise _AbandonedError
        if self.deadline is not None and self.loop.time() >= self.deadline:
            raise DeadlineTooShort


class Tokenizing:
    """Runs requests' `build` on `threads` threads; at most `limit` characters wait or are under way."""

    def __init__(self, threads: int, limit: int) -> None:
        self._limit = limit
        self._threads = ThreadPoolExecutor(threads, "tokenize")
        self._most_bulk = max(1, threads - 1)
        # On the event loop:
        self._live: set[_Job] = set()
        self._closed = False
        # On any thread, under the lock:
        self._lock = threading.Lock()
        self._waiting: dict[Priority, deque[_Job]] = {priority: deque() for priority in Priority}
        self._running_bulk = self._begun = 0

    async def run(
        self, build: Callable[[Pause], T], *, characters: int, priority: Priority, deadline: float | None
    ) -> T:
        """`build(pause)` on a thread; it calls `pause` between pieces of work. Cancelling the caller ends it there.

        Raises Overloaded before any work, DeadlineTooShort, Draining, or what `build` raises. A request that finds
        nothing else waiting may have any size.
        """
        if self._closed:
            raise Draining
        waiting = self._live_characters(*Priority)
        excess = waiting + characters - self._limit
        if priority is Priority.BULK and (bulk := self._live_characters(priority)):
            excess = max(excess, bulk + characters - int(_BULK_SHARE * self._limit))
        if waiting and excess > 0:
            raise Overloaded(max(0.1, excess / _CHARACTERS_PER_S))
        loop = asyncio.get_running_loop()
        job = _Job(build, characters, priority, deadline, loop, loop.create_future())
        self._live.add(job)
        try:
            with self._lock:
                self._waiting[priority].append(job)
            self._threads.submit(self._work)
            result: T = await job.future
            return result
        finally:
            self._live.discard(job)

    def close(self) -> None:
        """Fails what is not done with Draining and ends the threads. Safe to call twice."""
        self._closed = True
        for job in self._live:
            if not job.future.done():
                job.future.set_exception(Draining())
        self._threads.shutdown()

    def _live_characters(self, *priorities: Priority) -> int:
        return sum(job.characters for job in self._live if job.priority in priorities and not job.abandoned)

    def _work(self) -> None:
        while job := self._next():
            self._do(job)

    def _next(self) -> _Job | None:
        """The request whose turn it is. One that may not begin yet is begun by the thread that it waits for."""
        with self._lock:
            self._begun += 1
            priorities = [Priority.INTERACTIVE, Priority.BULK]
            if self._begun % _BULK_TURN == 0:
                priorities.reverse()
            for priority in priorities:
                if priority is Priority.BULK and self._running_bulk >= self._most_bulk:
                    continue
                if job := self._pop(priority):
                    self._running_bulk += priority is Priority.BULK
                    return job
        return None

    def _pop(self, priority: Priority) -> _Job | None:
        waiting = self._waiting[priority]
        while waiting:
            job = waiting.popleft()
            if not job.abandoned:
                return job
        return None

    def _do(self, job: _Job) -> None:
        def pause() -> None:
            if job.priority is Priority.BULK:
                self._do_interactive()
            job.check()

        result, error = None, None
        try:
            job.check()
            result = job.build(pause)
        except Exception as raised:
            error = raised
        if job.priority is Priority.BULK:
            with self._lock:
                self._running_bulk -= 1
        try:
            job.loop.call_soon_threadsafe(_settle, job, result, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _do_interactive(self) -> None:
        """On the thread of a bulk request, between two pieces of its work."""
        for _ in range(_BULK_TURN):
            with self._lock:
                job = self._pop(Priority.INTERACTIVE)
            if not job:
                return
            self._do(job)


def _settle(job: _Job, result: object, error: Exception | None) -> None:
    if job.future.done():
        return
    if error is not None:
        job.future.set_exception(error)
    else:
        job.future.set_result(result)
