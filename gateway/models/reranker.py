"""Query and documents to scores: cached, computed once, split over the rerank workers if that is worth it."""

from collections.abc import Sequence

from google.rpc import status_pb2

from gateway.cache.codec import CachedScore
from gateway.cache.keys import CacheKeys
from gateway.cache.tiered import TieredCache
from gateway.callers.quotas import Quotas
from gateway.models.cached_model import CachedModel, Computed
from gateway.models.concurrency import partition
from gateway.models.pool import RerankPool
from gateway.telemetry import GatewayMetrics
from services.api.backend import FailedItem, Reranked, ScoredDocument
from services.api.chunks import estimated_tokens
from services.api.options import RerankOptions
from services.runtime.errors import Internal
from winnow.rerank.v1 import rerank_pb2

# What every part computes again, in characters: system prompt and template, besides instruction and query.
_TEMPLATE_CHARS = 300
_TEMPLATE_TOKENS = 50
# A part is worth a call if its documents are so many times what it computes again.
_WORTH = 8


class RerankWorkers:
    """See `cached_model.Workers`. `split_bytes`: fewer bytes of documents than this are never split."""

    kind = "rerank"

    def __init__(self, pool: RerankPool, split_bytes: int) -> None:
        self.pool, self._split_bytes = pool, split_bytes

    def partition(
        self,
        positions: Sequence[int],
        texts: Sequence[str],
        options: RerankOptions,
        model: rerank_pb2.GetModelResponse,
    ) -> list[list[int]]:
        """Parts that are many times larger than the prompt, which each part computes again."""
        again = _TEMPLATE_CHARS + len(options.instruction or "") + len(options.query)
        return partition(positions, texts, model.limits.max_items, max(self._split_bytes, _WORTH * again))

    def estimate(self, text: str, options: RerankOptions) -> int:
        """Approximate tokens of a document with its prompt."""
        tokens = _TEMPLATE_TOKENS + estimated_tokens(options.instruction or "", options.query, text)
        return min(tokens, options.max_tokens or tokens)

    async def compute(
        self, texts: Sequence[str], options: RerankOptions, deadline: float | None
    ) -> Computed[CachedScore]:
        """Scores of documents."""
        response = await self.pool.rerank(options.request(texts), deadline)
        items: dict[int, CachedScore | FailedItem] = {
            result.index: CachedScore(result.logit, result.tokens, result.truncated) for result in response.results
        }
        items.update((failed.index, FailedItem(failed.error)) for failed in response.errors)
        if sorted(items) != list(range(len(texts))):
            raise Internal(ValueError(f"scores of documents {sorted(items)} for {len(texts)} documents"))
        return Computed(response.model, [items[index] for index in range(len(texts))], response.timings)


class Reranker:
    """The second stage, and the gateway's RerankBackend."""

    def __init__(
        self,
        workers: RerankWorkers,
        cache_keys: CacheKeys,
        cache: TieredCache[CachedScore],
        quotas: Quotas,
        metrics: GatewayMetrics,
    ) -> None:
        self._pool = workers.pool
        self._cached = CachedModel(workers, cache_keys, cache, quotas, metrics)

    async def model(self, deadline: float | None = None) -> rerank_pb2.GetModelResponse:
        """The model that the workers serve. Raises Problem if none can be asked."""
        return await self._pool.model(deadline)

    async def rerank(self, documents: Sequence[str], options: RerankOptions, deadline: float | None) -> Reranked:
        """Scores of all documents, all of one model.

        A document that fails has its error in its place. Raises Problem if the whole call fails.
        """
        got = await self._cached.get(documents, options, deadline)
        items = [
            ScoredDocument(
                answer.entry.logit, answer.entry.probability, answer.entry.tokens, answer.entry.truncated, answer.hit
            )
            if answer.entry is not None
            else answer.failed or FailedItem(status_pb2.Status())
            for answer in got.answers
        ]
        return Reranked(got.model, items, got.timings)

    async def close(self) -> None:
        """Cancels what is in flight."""
        await self._cached.close()
