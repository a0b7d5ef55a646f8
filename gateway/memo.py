"""Never compute twice: LRU → answers in flight → Redis → workers, for one kind of answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.rpc import status_pb2

from gateway.cache import Cache
from gateway.cost import FREE, Cost
from gateway.flights import Flights, Resolve
from gateway.lru import Sized
from gateway.signals import Signals
from services.runtime.errors import DeadlineTooShort
from services.runtime.telemetry import names
from winnow.common.v1 import common_pb2

E = TypeVar("E", bound=Sized)


@dataclass(frozen=True, slots=True)
class Answer(Generic[E]):
    """The answer for one item: an entry, or the error in its place. `tokens`: of one that failed, 0 if not counted."""

    model: common_pb2.ModelIdentity
    entry: E | None
    error: status_pb2.Status | None = None
    hit: bool = False
    cost: Cost = FREE
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Computed(Generic[E]):
    """What a worker made of one item, and the key that it may be kept under: the key under the model that answered."""

    answer: Answer[E]
    key: bytes


Deliver = Callable[[int, Computed[E]], None]
Compute = Callable[[Sequence[int], float, Deliver[E]], Awaitable[None]]
"""compute(positions, cache_ms, deliver): calls `deliver` once for each position, as results come in, or raises."""


class Memo(Generic[E]):
    """Answers by key. `kind` is "embed" or "rerank"."""

    def __init__(self, kind: str, cache: Cache[E], signals: Signals) -> None:
        self._kind = kind
        self._cache = cache
        self._signals = signals
        self._flights: Flights[tuple[int, bytes], Answer[E]] = Flights()

    async def get(
        self,
        model: common_pb2.ModelIdentity,
        keys: Sequence[bytes],
        lane: int,
        compute: Compute[E],
        deadline: float | None,
    ) -> list[Answer[E]]:
        """One answer for each key, in their order. What no cache has is computed, equal keys once.

        Interactive callers never wait for a bulk computation of the same key: `lane` is the priority of the work.
        """
        found: dict[bytes, Answer[E]] = {}
        positions: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            if key in found or key in positions:
                continue
            entry = self._cache.peek(key)
            if entry is None:
                positions[key] = position
            else:
                found[key] = Answer(model, entry, hit=True)
        if positions:

            async def work(own: Sequence[tuple[int, bytes]], resolve: Resolve[tuple[int, bytes], Answer[E]]) -> None:
                await self._resolve(model, [key for _, key in own], lane, positions, compute, resolve)

            timeout_s = None if deadline is None else deadline - asyncio.get_running_loop().time()
            try:
                flown = await self._flights.get([(lane, key) for key in positions], work, timeout_s)
            except TimeoutError:
                raise DeadlineTooShort from None
            found.update((key, answer) for (_, key), answer in flown.items())
        answers = [found[key] for key in keys]
        hits = sum(answer.hit for answer in answers)
        self._signals.cache_used(self._kind, hits, len(answers) - hits)
        return answers

    async def known(self, keys: Sequence[bytes]) -> list[E | None]:
        """What the caches have, without computing anything."""
        entries = [self._cache.peek(key) for key in keys]
        absent = [position for position, entry in enumerate(entries) if entry is None]
        if absent:
            fetched = await self._cache.fetch([keys[position] for position in absent])
            for position, entry in zip(absent, fetched, strict=True):
                entries[position] = entry
        return entries

    async def _resolve(
        self,
        model: common_pb2.ModelIdentity,
        keys: Sequence[bytes],
        lane: int,
        positions: dict[bytes, int],
        compute: Compute[E],
        resolve: Resolve[tuple[int, bytes], Answer[E]],
    ) -> None:
        began = time.perf_counter()
        with self._signals.span(names.CACHE_LOOKUP, {names.KIND: self._kind, names.ITEMS: len(keys)}) as span:
            entries = await self._cache.fetch(keys)
            misses = {positions[key]: key for key, entry in zip(keys, entries, strict=True) if entry is None}
            span.set_attribute(names.CACHE_HITS_COUNT, len(keys) - len(misses))
            span.set_attribute(names.CACHE_MISSES_COUNT, len(misses))
        cache_ms = (time.perf_counter() - began) * 1e3
        cost = Cost(cache_ms=cache_ms)
        for key, entry in zip(keys, entries, strict=True):
            if entry is not None:
                resolve((lane, key), Answer(model, entry, hit=True, cost=cost))

        def deliver(position: int, computed: Computed[E]) -> None:
            entry = computed.answer.entry
            if entry is not None:
                self._cache.store(computed.key, entry)
            resolve((lane, misses[position]), computed.answer)

        if misses:
            await compute(list(misses), cache_ms, deliver)

    async def close(self) -> None:
        """End what is in flight."""
        await self._flights.close()
