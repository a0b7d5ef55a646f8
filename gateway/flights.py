"""Single-flight: what several callers want at the same time is computed once.

A flight is one task that resolves a set of keys. It belongs to nobody: it runs on while at least one caller waits for
one of its keys, so a caller that gives up takes nothing from the others, and the last one to give up ends it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Flight(Generic[K, V]):
    def __init__(self, keys: Sequence[K]) -> None:
        loop = asyncio.get_running_loop()
        self.results: dict[K, asyncio.Future[V]] = {key: loop.create_future() for key in keys}
        self.waiters = 0
        self.task: asyncio.Task[None]

    def resolve(self, key: K, value: V) -> None:
        if not self.results[key].done():
            self.results[key].set_result(value)


Resolve = Callable[[K, V], None]
Work = Callable[[Sequence[K], Resolve[K, V]], Coroutine[Any, Any, None]]


class Flights(Generic[K, V]):
    """The flights of one kind of answer."""

    def __init__(self) -> None:
        self._by_key: dict[K, _Flight[K, V]] = {}

    async def get(self, keys: Sequence[K], work: Work[K, V], timeout_s: float | None) -> dict[K, V]:
        """The values of distinct keys.

        `work(own, resolve)` is run for the keys that no flight is computing yet; it calls `resolve` once for each, or
        raises. Keys in flight are waited for; where their flight fails (its caller may have had less time), they are
        asked for again. Raises TimeoutError after `timeout_s`, and what `work` raised.
        """
        loop = asyncio.get_running_loop()
        ends_at = None if timeout_s is None else loop.time() + timeout_s
        found: dict[K, V] = {}
        wanted = list(keys)
        while wanted:
            joined = {key: self._by_key[key] for key in wanted if key in self._by_key}
            own = [key for key in wanted if key not in joined]
            flights = dict(joined)
            if own:
                mine = self._launch(own, work)
                flights.update((key, mine) for key in own)
            await self._wait(flights, None if ends_at is None else ends_at - loop.time())
            wanted = []
            for key, flight in flights.items():
                future = flight.results[key]
                if key in joined and (future.cancelled() or future.exception() is not None):
                    wanted.append(key)
                else:
                    found[key] = future.result()
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

    def _launch(self, keys: Sequence[K], work: Work[K, V]) -> _Flight[K, V]:
        flight: _Flight[K, V] = _Flight(keys)

        async def fly() -> None:
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
                        future.exception()  # retrieved: there may be no waiter left
            finally:
                self._forget(flight)

        for key in keys:
            self._by_key[key] = flight
        flight.task = asyncio.create_task(fly(), name="flight")
        return flight

    def _forget(self, flight: _Flight[K, V]) -> None:
        for key in flight.results:
            if self._by_key.get(key) is flight:
                del self._by_key[key]

    def __len__(self) -> int:
        return len(self._by_key)

    async def close(self) -> None:
        """End all flights."""
        tasks = {flight.task for flight in self._by_key.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
