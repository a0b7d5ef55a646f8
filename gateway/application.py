"""The gateway as an application for `services.runtime.server`: builds all parts from the settings."""

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any

import grpc

from gateway.api.embed import CachedEmbedService
from gateway.api.retrieval import SERVICE as RETRIEVAL_SERVICE
from gateway.api.retrieval import RetrievalServicer
from gateway.cache.codec import CachedScore, CachedVector, ScoreCodec, VectorCodec
from gateway.cache.encoded_results import EncodedResultCache
from gateway.cache.keys import CacheKeys
from gateway.cache.redis_cache import RedisCache, RedisCacheSettings
from gateway.cache.tiered import TieredCache
from gateway.callers.access import Access, AccessInterceptor
from gateway.callers.policies import Policies
from gateway.callers.quotas import Quotas
from gateway.http.application import application
from gateway.http.exchange import FrontSettings
from gateway.http.server import HttpServer
from gateway.index.authorized_catalogue import AuthorizedCatalogue
from gateway.index.index import Index
from gateway.index.store import Store, StoreSettings
from gateway.index.upsert import Upserter
from gateway.models.dispatch import DispatchSettings
from gateway.models.embedder import Embedder, EmbedWorkers, SplitSettings
from gateway.models.pool import EmbedPool, PoolSettings, RerankPool
from gateway.models.reranker import Reranker, RerankWorkers
from gateway.redis.client import RedisClient
from gateway.redis.faults import FaultLog
from gateway.redis.url import RedisUrl
from gateway.search.budget import BudgetSettings
from gateway.search.pipeline import Pipeline
from gateway.settings import GatewaySettings
from gateway.telemetry import GatewayMetrics
from services.api.embed import SERVICE as EMBED_SERVICE
from services.api.embed import StreamSettings
from services.api.rerank import SERVICE as RERANK_SERVICE
from services.api.rerank import RerankService
from services.runtime.channel import Connector
from services.runtime.lifecycle import Lifecycle
from services.runtime.local_calls import LocalCalls
from services.runtime.server import MakeFront
from services.runtime.telemetry.setup import Telemetry
from winnow.embed.v1 import embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2_grpc

log = logging.getLogger("winnow.gateway")

_WRITE_TIMEOUT_S = 1.0
# A write into a large graph takes milliseconds, and a pipeline holds many writes.
_INDEX_WRITE_TIMEOUT_S = 10.0
# Scores are small: they get this fraction of the bytes for vectors.
_SCORES_SHARE = 8


def front(settings: GatewaySettings) -> MakeFront | None:
    """What makes the HTTP front of a gateway; None if GATEWAY_HTTP_LISTEN is empty."""
    listen = settings.http_listen
    if listen is None:
        return None
    chosen = FrontSettings(settings.limits(), settings.http_timeout_seconds, settings.http_names)

    def make(calls: LocalCalls, lifecycle: Lifecycle) -> HttpServer:
        return HttpServer(application(calls, lifecycle, chosen), settings, listen)

    return make


class Gateway:
    """All parts of the gateway. It is ready as soon as it listens: workers and Redis are connected to when needed."""

    services = (EMBED_SERVICE, RERANK_SERVICE, RETRIEVAL_SERVICE)

    def __init__(self, settings: GatewaySettings, telemetry: Telemetry) -> None:
        self._settings = settings
        self._metrics = metrics = GatewayMetrics(telemetry)
        policies = Policies(settings.callers_file)
        self._access, self._quotas = Access(policies), Quotas(policies, metrics)
        self.interceptors = (AccessInterceptor(self._access, self._quotas, metrics),)
        connect = partial(Connector, telemetry, settings.channel())
        pool = PoolSettings(
            timeout_s=settings.workers_timeout_seconds,
            refresh_s=settings.model_refresh_seconds,
            dispatch=DispatchSettings(settings.workers_attempts, settings.workers_hedge_tokens),
        )
        self._embed_pool = EmbedPool(settings.embed_target, connect(EMBED_SERVICE), pool, metrics)
        self._rerank_pool = RerankPool(settings.rerank_target, connect(RERANK_SERVICE), pool, metrics)

        cache_url = settings.cache_url or settings.redis_url
        cache_faults = FaultLog("cache", "GATEWAY_CACHE_URL" if settings.cache_url else "GATEWAY_REDIS_URL")
        self._cache_client = self._redis(cache_url, _WRITE_TIMEOUT_S, cache_faults)
        self._remote = self._remote_cache(self._cache_client, metrics) if self._cache_client else None
        local_bytes = settings.cache_local_bytes // 2
        self._encoded_results = EncodedResultCache(settings.cache_local_bytes - local_bytes)
        vectors: TieredCache[CachedVector] = TieredCache(VectorCodec(), local_bytes, self._remote, metrics)
        scores: TieredCache[CachedScore] = TieredCache(
            ScoreCodec(),
            settings.cache_local_bytes // _SCORES_SHARE if settings.score_cache else 0,
            self._remote if settings.score_cache else None,
            metrics,
        )
        cache_keys = CacheKeys(settings.cache_salt.get_secret_value())
        split = SplitSettings(settings.embed_split_items, settings.embed_split_bytes, settings.max_message_bytes)
        self._embedder = Embedder(EmbedWorkers(self._embed_pool, split), cache_keys, vectors, self._quotas, metrics)
        rerank_workers = RerankWorkers(self._rerank_pool, settings.rerank_split_bytes)
        self._reranker = Reranker(rerank_workers, cache_keys, scores, self._quotas, metrics)

        index_url = settings.index_url or settings.redis_url
        faults = FaultLog("index", "GATEWAY_INDEX_URL" if settings.index_url else "GATEWAY_REDIS_URL")
        self._index_client = self._redis(index_url, settings.index_timeout_ms / 1e3, faults)
        self._index_writer = self._redis(index_url, _INDEX_WRITE_TIMEOUT_S, faults)
        self._index = self._build_index()
        budget = BudgetSettings(
            timeout_s=settings.search_timeout_seconds,
            embed_share=settings.search_embed_share,
            retrieve_share=settings.search_retrieve_share,
        )
        self._pipeline = Pipeline(
            self._embedder,
            self._reranker,
            self._index,
            budget,
            settings.retrieval_weight,
            settings.index_oversample,
            metrics,
        )
        self._background: list[asyncio.Task[None]] = []

    @staticmethod
    def _redis(url: RedisUrl | None, timeout_s: float, faults: FaultLog) -> RedisClient | None:
        return RedisClient(url.get_secret_value(), timeout_s, faults) if url else None

    def _remote_cache(self, client: RedisClient, metrics: GatewayMetrics) -> RedisCache:
        settings = self._settings
        return RedisCache(
            client,
            RedisCacheSettings(
                ttl_s=settings.cache_ttl_seconds,
                read_timeout_s=settings.cache_read_timeout_ms / 1e3,
                write_timeout_s=_WRITE_TIMEOUT_S,
                queue_bytes=settings.cache_queue_bytes,
                breaker_failures=settings.cache_breaker_failures,
                breaker_open_s=settings.cache_breaker_open_ms / 1e3,
            ),
            metrics,
        )

    def _build_index(self) -> Index | None:
        settings, client, writer = self._settings, self._index_client, self._index_writer
        if client is None or writer is None:
            return None
        store = Store(
            client, writer, StoreSettings(settings.index_ef, settings.index_filter_ef, settings.index_replicas)
        )
        return Index(AuthorizedCatalogue(client, self._access), store)

    def register(self, server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        """Adds the three servicers."""
        settings, limits, stopping = self._settings, self._settings.limits(), lifecycle.stopping
        stream = StreamSettings(
            lambda: self._quotas.window(settings.stream_window_tokens), settings.stream_retry_seconds
        )
        upserter = Upserter(self._embedder, self._index.store, stream, stopping) if self._index else None
        embed = CachedEmbedService(self._embedder, self._encoded_results, self._metrics, limits, stream, stopping)
        retrieval = RetrievalServicer(self._pipeline, self._embedder, self._index, upserter, limits, stopping)
        embed_pb2_grpc.add_EmbedServiceServicer_to_server(embed, server)
        rerank_pb2_grpc.add_RerankServiceServicer_to_server(RerankService(self._reranker, limits), server)
        retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(retrieval, server)

    async def start(self) -> None:
        """Starts to connect to workers and Redis in the background."""
        self._embed_pool.start()
        self._rerank_pool.start()
        if self._remote is None:
            log.info("no cache in Redis: GATEWAY_REDIS_URL and GATEWAY_CACHE_URL are not set")
        else:
            self._remote.start()
        if self._index is None:
            log.info("no collections: GATEWAY_REDIS_URL and GATEWAY_INDEX_URL are not set")
        else:
            self._run(self._index.catalogue.inspect(), "index-inspection")

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._background.append(asyncio.create_task(work, name=name))

    async def drain(self) -> None:
        """Does nothing: the server waits for calls in progress, and streams watch the lifecycle."""

    async def close(self) -> None:
        """Writes what the cache has queued, then closes all connections."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._embedder.close()
        await self._reranker.close()
        if self._remote is not None:
            await self._remote.close()
        await self._embed_pool.close()
        await self._rerank_pool.close()
        clients = (self._cache_client, self._index_client, self._index_writer)
        await asyncio.gather(*(client.close() for client in clients if client is not None))
