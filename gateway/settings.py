"""Settings of the gateway, from GATEWAY_* variables."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from gateway.redis.url import RedisUrl
from services.runtime.channel import ChannelSettings
from services.runtime.settings import (
    Listen,
    OptionalListen,
    OptionalPath,
    ProcessSettings,
    Target,
    Token,
    blank_is_none,
)
from winnow.common.v1 import common_pb2


def _redis_url(value: object) -> object:
    value = blank_is_none(value)
    return RedisUrl(value) if isinstance(value, str) else value


OptionalUrl = Annotated[RedisUrl | None, BeforeValidator(_redis_url)]


class GatewaySettings(ProcessSettings):
    """What the gateway can be told."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", arbitrary_types_allowed=True)

    listen: Listen = Field("[::]:50050", description="address of the gRPC port; port 0 takes a free one")
    metrics_listen: OptionalListen = Field("[::]:9090", description="address of the Prometheus endpoint; empty: none")

    embed_target: Target = Field(
        "localhost:50051", min_length=1, description="the embed workers, as a gRPC target (dns:///winnow-embed:50051)"
    )
    rerank_target: Target = Field("localhost:50052", min_length=1, description="the rerank workers, as a gRPC target")
    workers_tls: bool = Field(False, description="speak TLS with the workers")
    workers_tls_ca: OptionalPath = Field(None, description="CA (PEM) that judges the workers; empty: the system's")
    workers_tls_cert: OptionalPath = Field(None, description="certificate (PEM) shown to the workers")
    workers_tls_key: OptionalPath = Field(None, description="private key (PEM) of that certificate")
    workers_token: Token = Field(SecretStr(""), description="bearer token sent to the workers; empty: none")
    workers_attempts: int = Field(3, ge=1, le=5, description="tries of a call that workers refuse, in all")
    workers_timeout_seconds: float = Field(300.0, gt=0, description="longest wait for a worker, whatever the deadline")
    model_refresh_seconds: float = Field(10.0, gt=0, description="how often the workers are asked for their model")

    redis_url: OptionalUrl = Field(
        None, description="Redis of cache and index: redis://, rediss://, unix://, redis+cluster://; empty: none"
    )
    cache_url: OptionalUrl = Field(None, description="Redis or Valkey of the cache alone; empty: GATEWAY_REDIS_URL")
    index_url: OptionalUrl = Field(None, description="Redis 8 of the collections alone; empty: GATEWAY_REDIS_URL")

    cache_ttl_seconds: int = Field(30 * 86400, ge=1, description="life of an entry, shortened by up to a tenth")
    cache_read_timeout_ms: float = Field(10.0, gt=0, description="longest that a look-up in Redis holds up an answer")
    cache_local_bytes: int = Field(128 << 20, ge=0, description="vectors kept in this process; 0: none")
    cache_queue_bytes: int = Field(64 << 20, ge=0, description="most bytes that wait to be written to Redis")
    cache_breaker_failures: int = Field(5, ge=1, description="failures in a row after which Redis is left alone")
    cache_breaker_open_ms: float = Field(1000.0, gt=0, description="for how long, until it is tried again")
    cache_salt: SecretStr = Field(
        SecretStr(""), description="secret mixed into all keys: tenants with different salts share nothing"
    )
    score_cache: bool = Field(True, description="cache rerank scores too")

    index_timeout_ms: float = Field(2000.0, gt=0, description="longest wait for the answer of a shard that was asked")
    index_ef: int = Field(
        300,
        ge=1,
        le=1_000_000,
        description="least breadth of the search in a collection's graphs (EF); more: better recall",
    )
    index_filter_ef: int = Field(
        50_000, ge=1, description="most documents that a filtered search looks at in a shard (FILTER-EF)"
    )

    index_oversample: float = Field(
        1.0,
        ge=1,
        le=20,
        description="times the candidates are taken from the index and re-scored exactly by cached vectors",
    )
    index_replicas: int = Field(
        0, ge=0, description="replicas that must have a document before it is acknowledged (WAIT); 0: none"
    )

    search_timeout_seconds: float = Field(30.0, gt=0, description="deadline of a search that came without one")
    search_embed_share: float = Field(
        0.6, gt=0, le=1, description="largest part of the remaining time that the embed stage may take"
    )
    search_retrieve_share: float = Field(
        0.5, gt=0, le=1, description="largest part of the remaining time that the retrieve stage may take"
    )
    retrieval_weight: Annotated[float | None, BeforeValidator(blank_is_none)] = Field(
        None, ge=0, le=1, description="share of the first stage in the score; empty: what the rerank model recommends"
    )

    embed_split_items: int = Field(64, ge=1, description="most texts in one call to an embed worker")
    embed_split_bytes: int = Field(128 << 10, ge=1, description="most bytes of text in one call to an embed worker")
    rerank_split_bytes: int = Field(
        256 << 10, ge=1, description="bytes of documents up to which a rerank is never split over workers"
    )
    stream_window_tokens: int = Field(65536, ge=1, description="estimated tokens of one stream in flight")
    stream_retry_seconds: float = Field(
        30.0, ge=0, description="how long a stream bears with workers or an index that are away"
    )
    max_items: int = Field(2048, ge=1, description="most texts, documents or ids in one request")
    max_text_bytes: int = Field(4 << 20, ge=1, description="most bytes of UTF-8 in one text")

    @model_validator(mode="after")
    def _workers_tls_is_whole(self) -> Self:
        if (self.workers_tls_cert is None) != (self.workers_tls_key is None):
            raise ValueError("workers_tls_cert and workers_tls_key are needed together")
        return self

    def limits(self) -> common_pb2.Limits:
        """What GetModel says about one request."""
        return common_pb2.Limits(
            max_items=self.max_items, max_text_bytes=self.max_text_bytes, max_message_bytes=self.max_message_bytes
        )

    def channel(self) -> ChannelSettings:
        """How to reach the workers."""
        return ChannelSettings(
            max_message_bytes=self.max_message_bytes,
            tls=self.workers_tls,
            tls_ca=self.workers_tls_ca,
            tls_cert=self.workers_tls_cert,
            tls_key=self.workers_tls_key,
            token=self.workers_token.get_secret_value() or None,
            attempts=self.workers_attempts,
        )
