"""Texts to vectors: cached, computed once, split over the embed workers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.rpc import status_pb2

from gateway.cache.codec import CachedVector
from gateway.cache.keys import CacheKeys
from gateway.cache.tiered import TieredCache
from gateway.callers.quotas import Quotas
from gateway.models.cached_model import CachedModel, Computed
from gateway.models.concurrency import partition
from gateway.models.pool import EmbedPool
from gateway.telemetry import GatewayMetrics
from services.api.backend import Embedded, EmbeddedText, FailedItem
from services.api.chunks import estimated_tokens
from services.api.options import EmbedOptions
from services.api.vectors import F32, narrow
from services.runtime.errors import Internal, NonFiniteResult, to_status
from winnow.embed.v1 import embed_pb2

# Bytes of a worker's response: of a value; of a result besides its values, or of an error; of the rest.
_VALUE_BYTES = 4
_AROUND_RESULT = 512
_AROUND_RESULTS = 4096


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """Limits of one call to a worker: items, bytes of text, and bytes of the response."""

    max_items: int
    max_bytes: int
    max_answer_bytes: int


class EmbedWorkers:
    """See `cached_model.Workers`."""

    kind = "embed"

    def __init__(self, pool: EmbedPool, limits: SplitSettings) -> None:
        self.pool, self._limits = pool, limits

    def partition(
        self, positions: Sequence[int], texts: Sequence[str], options: EmbedOptions, model: embed_pb2.GetModelResponse
    ) -> list[list[int]]:
        """Parts within the limits of a call."""
        limits = self._limits
        max_items = min(limits.max_items, model.limits.max_items, self._fitting(model))
        return partition(positions, texts, max_items, limits.max_bytes)

    def estimate(self, text: str, options: EmbedOptions) -> int:
        """Approximate tokens of a text with its instruction."""
        tokens = estimated_tokens(options.instruction or "", text)
        return min(tokens, options.max_tokens or tokens)

    async def compute(
        self, texts: Sequence[str], options: EmbedOptions, deadline: float | None
    ) -> Computed[CachedVector]:
        """Vectors of full width."""
        response = await self.pool.embed(options.request(texts, embed_pb2.ENCODING_FLOAT32), deadline)
        if len(response.results) != len(texts):
            raise Internal(ValueError(f"{len(response.results)} results for {len(texts)} texts"))
        return Computed(response.model, [_item(result) for result in response.results], response.timings)

    def _fitting(self, model: embed_pb2.GetModelResponse) -> int:
        """How many results are sure to fit into a response, by the limits of the worker and of this process."""
        room = min(model.limits.max_message_bytes, self._limits.max_answer_bytes) - _AROUND_RESULTS
        return max(1, room // (_VALUE_BYTES * model.dimensions + _AROUND_RESULT))


class Embedder:
    """The first stage, and the gateway's EmbedBackend."""

    def __init__(
        self,
        workers: EmbedWorkers,
        cache_keys: CacheKeys,
        cache: TieredCache[CachedVector],
        quotas: Quotas,
        metrics: GatewayMetrics,
    ) -> None:
        self._pool = workers.pool
        self._cached = CachedModel(workers, cache_keys, cache, quotas, metrics)

    async def model(self, deadline: float | None = None) -> embed_pb2.GetModelResponse:
        """The model that the workers serve. Raises Problem if none can be asked."""
        return await self._pool.model(deadline)

    async def embed(
        self,
        texts: Sequence[str],
        options: EmbedOptions,
        deadline: float | None,
        *,
        part: int = 0,
        fingerprint: str | None = None,
    ) -> Embedded:
        """Vectors of all texts, all of one model.

        With a `fingerprint`, of that model: WrongModelError if the workers serve another. A text that fails has its
        error in its place. Raises Problem if the whole call fails.
        """
        got = await self._cached.get(texts, options, deadline, fingerprint)
        entries = [answer.entry for answer in got.answers if answer.entry is not None]
        items = [
            EmbeddedText(answer.entry.tokens, answer.entry.truncated, answer.hit)
            if answer.entry is not None
            else answer.failed or FailedItem(status_pb2.Status())
            for answer in got.answers
        ]
        return Embedded(got.model, items, lambda dimensions: vectors(entries, dimensions), got.timings)

    async def known(
        self, texts: Sequence[str], options: EmbedOptions, model: embed_pb2.GetModelResponse
    ) -> list[CachedVector | None]:
        """The vectors in the caches, None if there is none; no worker is called."""
        return await self._cached.known(texts, options, model)

    async def close(self) -> None:
        """Cancels what is in flight."""
        await self._cached.close()


def _item(result: embed_pb2.EmbedResult) -> CachedVector | FailedItem:
    if result.WhichOneof("outcome") == "error":
        return FailedItem(result.error, result.tokens)
    data = result.embedding.data
    valid = len(data) == _VALUE_BYTES * result.embedding.dimensions
    entry = CachedVector.of(data, result.tokens, result.truncated) if valid else None
    return entry or FailedItem(to_status(NonFiniteResult()))


def vectors(entries: Sequence[CachedVector], dimensions: int) -> F32:
    """float32 [n, dimensions], unit rows. All from the entries, cached or just computed, so that both are the same."""
    if not entries:
        return np.zeros((0, dimensions), np.float32)
    return narrow(np.stack([entry.row for entry in entries]), dimensions)
