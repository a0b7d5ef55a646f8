"""The answers of one pool of workers: cached, computed once, and all of a response from one model.

Ask the pool for its model, make the keys, look in this process and in Redis, compute what is missing through
single-flight, and check that one model answered all of it; during a rolling update, try again.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc

from gateway.cache.keys import CacheKeys
from gateway.cache.lru import Sized
from gateway.cache.single_flight import Resolve, SingleFlight
from gateway.cache.tiered import TieredCache
from gateway.cache.timings import NO_TIME, StageTimings
from gateway.callers.quotas import Quotas
from gateway.models.concurrency import Begun, for_each
from gateway.models.pool import Model, Pool
from gateway.telemetry import GatewayMetrics
from services.api.backend import FailedItem
from services.runtime.errors import DeadlineTooShort, Problem, UpstreamUnavailable
from services.runtime.telemetry import names
from winnow.common.v1 import common_pb2

_ATTEMPTS = 4
_PARTS_AT_ONCE = 8


class Options(Protocol):
    """What both kinds of options have in common; see `services.api.options`."""

    @property
    def priority(self) -> common_pb2.Priority:
        """Of the work."""

    def resolved(self, model: Any) -> Self:
        """With the model's defaults filled in."""

    def identity(self) -> tuple[str, ...]:
        """What decides an answer, besides the text."""


class Entry(Sized, Protocol):
    """What is kept of an answer."""

    @property
    def tokens(self) -> int:
        """Tokens of its text, with the prompt."""


M = TypeVar("M", bound=Model)
Opt = TypeVar("Opt", bound=Options)
Opt_contra = TypeVar("Opt_contra", bound=Options, contravariant=True)
E = TypeVar("E", bound=Entry)


class WrongModelError(Exception):
    """The workers serve another model than the required one."""

    def __init__(self, serving: common_pb2.ModelIdentity) -> None:
        super().__init__()
        self.serving = serving


@dataclass(frozen=True, slots=True)
class Computed(Generic[E]):
    """The results of one call to a worker, in the order of its texts. `model` is the one that answered."""

    model: common_pb2.ModelIdentity
    items: Sequence[E | FailedItem]
    timings: common_pb2.Timings


@dataclass(frozen=True, slots=True)
class Answer(Generic[E]):
    """The answer for one text: an entry or an error."""

    model: common_pb2.ModelIdentity
    entry: E | None
    failed: FailedItem | None = None
    hit: bool = False
    timings: StageTimings = NO_TIME

    @property
    def computed_tokens(self) -> int:
        """Tokens that the model computed for this answer."""
        counted = self.entry or self.failed
        return counted.tokens if counted is not None and not self.hit else 0


@dataclass(frozen=True, slots=True)
class Answers(Generic[M, E]):
    """One answer for each text, in order, all of one model."""

    model: M
    answers: Sequence[Answer[E]]

    @property
    def timings(self) -> common_pb2.Timings:
        """The slowest of each stage, of parts that ran concurrently."""
        return StageTimings.slowest(answer.timings for answer in self.answers).proto()


class Workers(Protocol[M, Opt_contra, E]):
    """What differs between embedding and reranking."""

    @property
    def kind(self) -> str:
        """Kind of answer: "embed" or "rerank"."""

    @property
    def pool(self) -> Pool[M]:
        """The workers."""

    def partition(
        self, positions: Sequence[int], texts: Sequence[str], options: Opt_contra, model: M
    ) -> list[list[int]]:
        """Splits positions into parts, one for each call."""

    def estimate(self, text: str, options: Opt_contra) -> int:
        """Approximate tokens of a text with its prompt. `options` are resolved."""

    async def compute(self, texts: Sequence[str], options: Opt_contra, deadline: float | None) -> Computed[E]:
        """One call to one worker. `options` are resolved. Raises Problem."""


@dataclass(frozen=True, slots=True)
class _Call(Generic[M, Opt]):
    """What a flight needs of the call that started it, which it may outlive. `positions`: key → index of its text."""

    model: M
    texts: Sequence[str]
    options: Opt
    deadline: float | None
    positions: dict[bytes, int]


_FlightKey = tuple[int, bytes]
"""Priority and cache key: interactive callers never wait for a bulk computation of the same text."""


class CachedModel(Generic[M, Opt, E]):
    """Answers of `workers`, kept in `cache` under the keys that `cache_keys` makes."""

    def __init__(
        self,
        workers: Workers[M, Opt, E],
        cache_keys: CacheKeys,
        cache: TieredCache[E],
        quotas: Quotas,
        metrics: GatewayMetrics,
    ) -> None:
        self._workers, self._cache_keys, self._cache, self._metrics = workers, cache_keys, cache, metrics
        self._quotas = quotas
        self._single_flight: SingleFlight[_FlightKey, Answer[E]] = SingleFlight()

    async def get(
        self, texts: Sequence[str], options: Opt, deadline: float | None, fingerprint: str | None = None
    ) -> Answers[M, E]:
        """One answer for each text, all of one model. `deadline`: a time of the event loop's clock.

        With a `fingerprint`, of that model: WrongModelError if the workers serve another. Raises Problem if the whole
        call fails.
        """
        pool = self._workers.pool
        refusals: list[tuple[str, Problem]] = []
        for _ in range(_ATTEMPTS):
            model = await self._model(fingerprint, deadline)
            resolved = options.resolved(model)
            try:
                answers = await self._answers(model, texts, resolved, deadline)
            except Problem as problem:
                # Options that this model has may be wrong for another one, which is taking its place.
                if problem.code is not grpc.StatusCode.INVALID_ARGUMENT or not await pool.is_changing(model, deadline):
                    raise
                refusals.append((model.model.fingerprint, problem))
                continue
            seen = {answer.model.fingerprint: answer.model for answer in answers}
            if set(seen) == {model.model.fingerprint}:
                return Answers(model, answers)
            # The workers have changed their model. Its results are cached under its own fingerprint.
            other = next(identity for print_, identity in seen.items() if print_ != model.model.fingerprint)
            serving = await pool.model_of(other, deadline)
            if fingerprint is None and len(seen) == 1 and options.resolved(serving) == resolved:
                return Answers(serving, answers)
        if len(refusals) == _ATTEMPTS and len({refused for refused, _ in refusals}) == 1:
            raise refusals[-1][1]  # by one model, again and again: it is the request
        if fingerprint is not None:
            raise WrongModelError((await pool.model(deadline)).model)
        raise UpstreamUnavailable(pool.what, "is changing its model")

    async def known(self, texts: Sequence[str], options: Opt, model: M) -> list[E | None]:
        """The entries in the caches, None if there is none; no worker is called."""
        keys = self._keys(model.model.fingerprint, texts, options.resolved(model))
        entries = [self._cache.peek(key) for key in keys]
        absent = [position for position, entry in enumerate(entries) if entry is None]
        for position, entry in zip(absent, await self._cache.fetch([keys[place] for place in absent]), strict=True):
            entries[position] = entry
        return entries

    async def close(self) -> None:
        """Cancels what is in flight."""
        await self._single_flight.close()

    async def _model(self, fingerprint: str | None, deadline: float | None) -> M:
        pool = self._workers.pool
        if fingerprint is None:
            return await pool.model(deadline)
        model = await pool.serving(fingerprint, deadline)
        if model is None:
            raise WrongModelError((await pool.model(deadline)).model)
        return model

    def _keys(self, fingerprint: str, texts: Sequence[str], options: Opt) -> list[bytes]:
        return self._cache_keys.keys(self._workers.kind, fingerprint, options.identity(), texts)

    async def _answers(self, model: M, texts: Sequence[str], options: Opt, deadline: float | None) -> list[Answer[E]]:
        """One answer for each text. What no cache has is computed, once for equal texts."""
        keys = self._keys(model.model.fingerprint, texts, options)
        found: dict[bytes, Answer[E]] = {}
        positions: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            if key in found or key in positions:
                continue
            entry = self._cache.peek(key)
            if entry is None:
                positions[key] = position
            else:
                found[key] = Answer(model.model, entry, hit=True)
        if positions:
            call = _Call(model, texts, options, deadline, positions)
            timeout_s = None if deadline is None else deadline - asyncio.get_running_loop().time()
            estimate = sum(self._workers.estimate(texts[position], options) for position in positions.values())
            try:
                async with self._quotas.spending(estimate) as spending:
                    computed = await self._single_flight.get(
                        [(options.priority, key) for key in positions], partial(self._resolve, call), timeout_s
                    )
                    spending.tokens = sum(answer.computed_tokens for answer in computed.values())
            except TimeoutError:
                raise DeadlineTooShort from None
            found.update((key, answer) for (_, key), answer in computed.items())
        answers = [found[key] for key in keys]
        hits = sum(answer.hit for answer in answers)
        self._metrics.cache_used(self._workers.kind, hits, len(answers) - hits)
        return answers

    async def _resolve(
        self, call: _Call[M, Opt], wanted: Sequence[_FlightKey], resolve: Resolve[_FlightKey, Answer[E]]
    ) -> None:
        """Resolves each key from Redis or from the workers."""
        keys = [key for _, key in wanted]
        began = time.perf_counter()
        with self._metrics.span(names.CACHE_LOOKUP, {names.KIND: self._workers.kind, names.ITEMS: len(keys)}) as span:
            entries = await self._cache.fetch(keys)
            missing = [call.positions[key] for key, entry in zip(keys, entries, strict=True) if entry is None]
            span.set_attribute(names.CACHE_HITS_COUNT, len(keys) - len(missing))
            span.set_attribute(names.CACHE_MISSES_COUNT, len(missing))
        timings = StageTimings(cache_ms=(time.perf_counter() - began) * 1e3)
        for key, entry in zip(wanted, entries, strict=True):
            if entry is not None:
                resolve(key, Answer(call.model.model, entry, hit=True, timings=timings))
        parts = self._workers.partition(missing, call.texts, call.options, call.model)
        compute, begun = partial(self._compute, call, resolve, timings.cache_ms), Begun()
        await for_each(parts, lambda part: begun.send(partial(compute, part)), _PARTS_AT_ONCE)

    async def _compute(
        self, call: _Call[M, Opt], resolve: Resolve[_FlightKey, Answer[E]], cache_ms: float, part: Sequence[int]
    ) -> None:
        texts = [call.texts[position] for position in part]
        computed = await self._workers.compute(texts, call.options, call.deadline)
        wanted = self._keys(call.model.model.fingerprint, texts, call.options)
        kept = wanted
        if computed.model.fingerprint != call.model.model.fingerprint:
            kept = self._keys(computed.model.fingerprint, texts, call.options)
        timings = StageTimings.of(computed.timings, cache_ms)
        for key, kept_key, item in zip(wanted, kept, computed.items, strict=True):
            if isinstance(item, FailedItem):
                answer: Answer[E] = Answer(computed.model, None, item, timings=timings)
            else:
                self._cache.store(kept_key, item)
                answer = Answer(computed.model, item, timings=timings)
            resolve((call.options.priority, key), answer)
