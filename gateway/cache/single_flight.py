"""Single-flight: a value that several callers need at the same time is computed once.

A flight is one task that resolves a set of keys. It belongs to no caller: it runs while at least one caller waits for
one of its keys, so that a caller that gives up does not affect the others; when the last one gives up, it is cancelled.
It fails for all its callers, unless only the deadline or the request of its first caller is to blame.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Hashable, Sequence
from enum import Enum
from typing import Any, Generic, TypeVar

import grpc

from services.runtime.errors import DeadlineTooShort, PoolSaturated, Problem

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Failures of the server: to retry for each caller would only make the callers wait one after the other.
_SHARED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL}


class _Flight(Generic[K, V]):
    def __init__(self, keys: Sequence[K], ends_at: float) -> None:
        loop = asyncio.get_running_loop()
        self.ends_at = ends_at
        self.results: dict[K, asyncio.Future[V]] = {key: loop.create_future() for key in keys}
        self.waiters = 0
        self.task: asyncio.Task[None]

    def resolve(self, key: K, value: V) -> None:
        if not self.results[key].done():
            self.results[key].set_result(value)


Resolve = Callable[[K, V], None]
Work = Callable[[Sequence[K], Resolve[K, V]], Coroutine[Any, Any, None]]


class SingleFlight(Generic[K, V]):
    """The flights of one kind of value."""

    def __init__(self) -> None:
        self._by_key: dict[K, _Flight[K, V]] = {}

    async def get(self, keys: Sequence[K], work: Work[K, V], timeout_s: float | None) -> dict[K, V]:
        """The values of distinct keys.

        `work(own, resolve)` runs for the keys that no flight computes yet. It calls `resolve` once for each, or raises.
        Keys in flight are waited for, and fail with their flight. All their callers together compute them again if the
        flight's first caller had less time, or once if its request may be to blame. Raises TimeoutError after
        `timeout_s`, and what `work` raised.
        """
        loop = asyncio.get_running_loop()
        ends_at = math.inf if timeout_s is None else loop.time() + timeout_s
        found: dict[K, V] = {}
        wanted = list(keys)
        blamed = False  # whether the request of a first caller was to blame, which is accepted once
        while wanted:
            joined = {key: self._by_key[key] for key in wanted if key in self._by_key}
            own = [key for key in wanted if key not in joined]
            flights = dict(joined)
            if own:
                mine = self._launch(own, work, ends_at)
                flights.update((key, mine) for key in own)
            await self._wait(flights, None if ends_at == math.inf else ends_at - loop.time())
            wanted = []
            for key, flight in flights.items():
                result = flight.results[key]
                match _blame(result) if key in joined else None:
                    case _Blame.TIME if flight.ends_at < ends_at:
                        wanted.append(key)
                    case _Blame.REQUEST if not blamed:
                        wanted.append(key)
                    case _:
                        found[key] = result.result()
            blamed = blamed or any(_blame(flights[key].results[key]) is _Blame.REQUEST for key in wanted)
        return found

    async def _wait(self, flights: dict[K, _Flight[K, V]], timeout_s: float | None) -> None:
        distinct = set(flights.values())
        for flight in distinct:
            flight.waiters += 1
        try:
            futures = [flight.results[key] for key, flight in flights.items()]
            _, pending = await asyncio.wait(futures, timeout=timeout_s)
            if pending:
                raise TimeoutError
        finally:
            for flight in distinct:
                flight.waiters -= 1
                if flight.waiters == 0 and not flight.task.done():
                    self._forget(flight)
                    flight.task.cancel()

    def _launch(self, keys: Sequence[K], work: Work[K, V], ends_at: float) -> _Flight[K, V]:
        flight: _Flight[K, V] = _Flight(keys, ends_at)

        async def run() -> None:
            try:
                await work(keys, flight.resolve)
                for key in keys:
                    if not flight.results[key].done():
                        raise RuntimeError("a flight ended without resolving all its keys")
            except asyncio.CancelledError:
                for future in flight.results.values():
                    future.cancel()
                raise
            except Exception as error:
                for future in flight.results.values():
                    if not future.done():
                        future.set_exception(error)
                        future.exception()  # marks it as retrieved: no caller may be left
            finally:
                self._forget(flight)

        for key in keys:
            self._by_key[key] = flight
        flight.task = asyncio.create_task(run(), name="flight")
        return flight

    def _forget(self, flight: _Flight[K, V]) -> None:
        for key in flight.results:
            if self._by_key.get(key) is flight:
                del self._by_key[key]

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def waiting(self) -> int:
        """Number of callers that wait."""
        return sum(flight.waiters for flight in set(self._by_key.values()))

    async def close(self) -> None:
        """Cancels all flights."""
        tasks = {flight.task for flight in self._by_key.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Blame(Enum):
    """What of its first caller may have made a flight fail."""

    TIME = 1
    REQUEST = 2


def _blame(result: asyncio.Future[Any]) -> _Blame | None:
    """None if it succeeded, or failed for all callers."""
    error = asyncio.CancelledError() if result.cancelled() else result.exception()
    match error:
        case None:
            return None
        case DeadlineTooShort():
            return _Blame.TIME
        case PoolSaturated():  # for the deadline of its first caller, perhaps: others may have time to wait
            return _Blame.REQUEST
        case Problem() if error.code in _SHARED:
            return None
        case _:
            return _Blame.REQUEST
