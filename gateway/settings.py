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
    """The settings of the gateway."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", arbitrary_types_allowed=True)

    listen: Listen = Field("[::]:50050", description="address to serve gRPC on; port 0: any free port")
    metrics_listen: OptionalListen = Field("[::]:9090", description="address of the Prometheus endpoint; empty: off")

    http_listen: OptionalListen = Field(
        None, description="address to serve HTTP on: OpenAI's, Cohere's and TEI's APIs, the playground; empty: off"
    )
    http_timeout_seconds: float = Field(
        60.0, gt=0, description="deadline of an HTTP request without the header x-request-timeout-ms"
    )
    http_model_aliases: str = Field(
        "", description="names of models that HTTP requests may use besides the served ones, separated by commas"
    )

    embed_target: Target = Field(
        "localhost:50051", min_length=1, description="gRPC target of the embed workers (dns:///winnow-embed:50051)"
    )
    rerank_target: Target = Field("localhost:50052", min_length=1, description="gRPC target of the rerank workers")
    workers_tls: bool = Field(False, description="use TLS for connections to the workers")
    workers_tls_ca: OptionalPath = Field(None, description="CA (PEM) that verifies the workers; empty: the system's")
    workers_tls_cert: OptionalPath = Field(None, description="client certificate (PEM) for the workers")
    workers_tls_key: OptionalPath = Field(None, description="private key (PEM) of that certificate")
    workers_token: Token = Field(SecretStr(""), description="bearer token sent to the workers; empty: none")
    workers_attempts: int = Field(
        3, ge=1, le=5, description="maximum attempts of a call, each on another worker; at most 10 % of calls have more"
    )
    workers_hedge_tokens: int = Field(
        512,
        ge=0,
        description="maximum tokens of an interactive call that goes to a second worker if it takes long; 0: never",
    )
    workers_timeout_seconds: float = Field(
        300.0, gt=0, description="timeout of a call to a worker, whatever its deadline"
    )
    model_refresh_seconds: float = Field(10.0, gt=0, description="interval between two polls of the workers' model")

    callers_file: OptionalPath = Field(
        None,
        description="file (TOML) of what each caller may do, and its quota; read again when it changes; empty: none",
    )

    redis_url: OptionalUrl = Field(
        None,
        description="Redis for cache and index: redis://, rediss://, unix://, redis+cluster://; empty: none",
    )
    cache_url: OptionalUrl = Field(None, description="Redis or Valkey for the cache only; empty: GATEWAY_REDIS_URL")
    index_url: OptionalUrl = Field(None, description="Redis 8 for the collections only; empty: GATEWAY_REDIS_URL")

    cache_ttl_seconds: int = Field(
        30 * 86400, ge=1, description="time to live of an entry, less up to a tenth at random"
    )
    cache_read_timeout_ms: float = Field(10.0, gt=0, description="maximum wait of a request for a look-up in Redis")
    cache_local_bytes: int = Field(128 << 20, ge=0, description="bytes of vectors cached in this process; 0: none")
    cache_queue_bytes: int = Field(64 << 20, ge=0, description="maximum bytes queued to be written to Redis")
    cache_breaker_failures: int = Field(5, ge=1, description="consecutive failures that open the circuit breaker")
    cache_breaker_open_ms: float = Field(
        1000.0, gt=0, description="time that the breaker stays open before Redis is tried again"
    )
    cache_salt: SecretStr = Field(
        SecretStr(""), description="secret in every cache key: gateways with different salts share no entries"
    )
    score_cache: bool = Field(True, description="also cache rerank scores")

    index_timeout_ms: float = Field(2000.0, gt=0, description="timeout of a command to a shard")
    index_ef: int = Field(
        300,
        ge=1,
        le=1_000_000,
        description="minimum EF of a search (size of the candidate list); higher: better recall, slower",
    )
    index_filter_ef: int = Field(
        50_000, ge=1, description="FILTER-EF of a search: maximum documents of a shard that a filter is tried on"
    )

    index_oversample: float = Field(
        1.0,
        ge=1,
        le=20,
        description="multiple of the candidates to read from the index, to be re-scored exactly with cached vectors",
    )
    index_replicas: int = Field(
        0, ge=0, description="replicas that must have a write before it is acknowledged (WAIT); 0: none"
    )

    search_timeout_seconds: float = Field(30.0, gt=0, description="deadline of a search that has none")
    search_embed_share: float = Field(
        0.6, gt=0, le=1, description="maximum share of the remaining time for the embed stage"
    )
    search_retrieve_share: float = Field(
        0.5, gt=0, le=1, description="maximum share of the remaining time for the retrieve stage"
    )
    retrieval_weight: Annotated[float | None, BeforeValidator(blank_is_none)] = Field(
        None,
        ge=0,
        le=1,
        description="weight of the retrieval score in the score; empty: what the rerank model recommends",
    )

    embed_split_items: int = Field(64, ge=1, description="maximum texts in one call to an embed worker")
    embed_split_bytes: int = Field(128 << 10, ge=1, description="maximum bytes of text in one call to an embed worker")
    rerank_split_bytes: int = Field(
        256 << 10, ge=1, description="a rerank with fewer bytes of documents is not split over workers"
    )
    stream_window_tokens: int = Field(65536, ge=1, description="maximum estimated tokens in flight of one stream")
    stream_retry_seconds: float = Field(
        30.0, ge=0, description="how long a stream retries while the workers or the index are unreachable"
    )
    max_text_bytes: int = Field(4 << 20, ge=1, description="maximum bytes of one text (UTF-8)")

    @model_validator(mode="after")
    def _workers_tls_is_whole(self) -> Self:
        if (self.workers_tls_cert is None) != (self.workers_tls_key is None):
            raise ValueError("workers_tls_cert and workers_tls_key must be set together")
        return self

    @property
    def http_names(self) -> frozenset[str]:
        """The names of `http_model_aliases`."""
        return frozenset(name.strip() for name in self.http_model_aliases.split(",") if name.strip())

    def limits(self) -> common_pb2.Limits:
        """The limits of one request, as GetModel reports them."""
        return common_pb2.Limits(
            max_items=self.max_items, max_text_bytes=self.max_text_bytes, max_message_bytes=self.max_message_bytes
        )

    def channel(self) -> ChannelSettings:
        """Settings of the channels to the workers."""
        return ChannelSettings(
            max_message_bytes=self.max_message_bytes,
            tls=self.workers_tls,
            tls_ca=self.workers_tls_ca,
            tls_cert=self.workers_tls_cert,
            tls_key=self.workers_tls_key,
            token=self.workers_token.get_secret_value() or None,
        )
