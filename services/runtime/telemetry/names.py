"""All names in exported telemetry: spans, attributes, metrics, and the values of metric labels.

RPC names follow the stable RPC conventions (1.45). `gen_ai.*` names follow the GenAI conventions, which are still in
development; if they change, only this file changes. Values never contain texts of callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import grpc

SCOPE = "winnow"

# -- spans
CACHE_LOOKUP = "cache.lookup"
QUEUE = "queue"
TOKENIZE = "tokenize"
FORWARD = "forward"
INDEX_SEARCH = "index.search"
BATCH = "batch"

# -- attributes: RPC
RPC_SYSTEM = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.status_code"
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"

# -- attributes: GenAI
OPERATION = "gen_ai.operation.name"
EMBEDDINGS = "embeddings"
RETRIEVAL = "retrieval"
RERANK = "rerank"
PROVIDER = "gen_ai.provider.name"
PROVIDER_WINNOW = "winnow"
RESPONSE_MODEL = "gen_ai.response.model"
DIMENSIONS = "gen_ai.embeddings.dimension.count"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
TOP_K = "gen_ai.retrieval.top_k"

# -- attributes: Redis, according to the database conventions
DB_OPERATION = "db.operation.name"

# -- attributes: Winnow
INCIDENT = "winnow.incident"
REASON = "winnow.reason"
ITEMS = "winnow.items"
RERANK_TOP_N = "winnow.rerank.top_n"
FINGERPRINT = "winnow.model.fingerprint"
PRIORITY = "winnow.priority"
BATCH_SEGMENTS = "winnow.batch.segments"
BATCH_UNIQUE_TOKENS = "winnow.batch.tokens"
BATCH_REQUESTED_TOKENS = "winnow.batch.requested_tokens"
CACHE_HITS_COUNT = "winnow.cache.hits"
CACHE_MISSES_COUNT = "winnow.cache.misses"
DEGRADED = "winnow.degraded"
CLIENT = "winnow.client"
STAGE = "stage"
KIND = "kind"
SHED_REASON = "reason"
CALLER = "caller"
ATTEMPT = "attempt"
STATE = "state"


# -- values of labels. Alerts and dashboards select by them; a test checks them against these lists.


class Refusal(StrEnum):
    """Why a call was refused. The member's name is the `reason` in the caller's ErrorInfo."""

    REPLICA_FULL = "replica_full"
    OVERLOADED = "overloaded"
    DEADLINE_TOO_SHORT = "deadline_too_short"
    NOT_READY = "not_ready"
    QUOTA_EXCEEDED = "quota_exceeded"
    PERMISSION_DENIED = "permission_denied"


class DegradedStage(StrEnum):
    """The stage of a search that failed or was incomplete."""

    EMBED = "embed"
    RETRIEVE = "retrieve"
    RERANK = "rerank"


class DegradedReason(StrEnum):
    """The reason, equal to Degradation.reason in the response."""

    EMBED_PARTIAL = "EMBED_PARTIAL"
    EMBED_DEADLINE = "EMBED_DEADLINE"
    EMBED_OVERLOADED = "EMBED_OVERLOADED"
    EMBED_UNAVAILABLE = "EMBED_UNAVAILABLE"
    SHARD_UNAVAILABLE = "SHARD_UNAVAILABLE"
    SHARD_INCOMPLETE = "SHARD_INCOMPLETE"
    RETRIEVE_OVERLOADED = "RETRIEVE_OVERLOADED"
    RERANK_PARTIAL = "RERANK_PARTIAL"
    RERANK_DEADLINE = "RERANK_DEADLINE"
    RERANK_OVERLOADED = "RERANK_OVERLOADED"
    RERANK_UNAVAILABLE = "RERANK_UNAVAILABLE"


class AnswerKind(StrEnum):
    """The kind of a cached item."""

    EMBED = "embed"
    RERANK = "rerank"


class Attempt(StrEnum):
    """Why a call was sent to a worker."""

    FIRST = "first"
    RETRY = "retry"
    HEDGE = "hedge"


class ReplicaState(StrEnum):
    """What a gateway knows of a worker. Only usable ones get calls while there are any."""

    USABLE = "usable"
    PAUSED = "paused"
    CONNECTING = "connecting"
    SILENT = "silent"
    FAILING = "failing"


class CacheOperation(StrEnum):
    """The operation of a cache call."""

    READ = "read"
    WRITE = "write"


class CacheFault(StrEnum):
    """Cache errors of the gateway itself. Errors of Redis are listed in the gateway."""

    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "QueueTimeoutError"
    INVALID_VALUE = "invalid_value"


# Label → its values. None: the values are listed elsewhere, such as the methods of the contract.
Labels: TypeAlias = "Mapping[str, frozenset[str] | None]"

_CODES = frozenset(code.name for code in grpc.StatusCode)
_RPC: Labels = {RPC_SYSTEM: frozenset({"grpc"}), RPC_METHOD: None}
_CALL: Labels = {**_RPC, RPC_STATUS: _CODES, ERROR_TYPE: _CODES}


@dataclass(frozen=True, slots=True)
class Instrument:
    """A metric: OpenTelemetry name, unit (UCUM), description, bucket bounds if it is a histogram, and labels.

    The Prometheus name has "_" instead of ".", the unit spelled out if the name does not end in it, and "_total" for
    counters. Labels have "_" instead of ".", too.
    """

    name: str
    unit: str
    description: str
    buckets: tuple[float, ...] | None = None
    labels: Labels = field(default_factory=dict)


_SECONDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)  # required by the convention
_MILLIS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

SERVER_DURATION = Instrument("rpc.server.call.duration", "s", "Duration of inbound calls", _SECONDS, _CALL)
CLIENT_DURATION = Instrument(
    "rpc.client.call.duration", "s", "Duration of outbound calls; a retry is a call of its own", _SECONDS, _CALL
)
SERVER_ACTIVE = Instrument("winnow_active_calls", "{call}", "Inbound calls in progress", labels=_RPC)
QUEUE_TOKENS = Instrument("winnow_queue_tokens", "{token}", "Tokens that are queued or running")
QUEUE_SECONDS = Instrument("winnow_queue_seconds", "s", "Queued tokens / measured tokens per second; scale on this")
TOKENS_PER_SECOND = Instrument("winnow_tokens_per_second", "{token}/s", "Measured speed of the model")
BATCH_TOKENS = Instrument(
    "winnow_batch_tokens", "{token}", "Tokens computed in a batch", tuple(float(1 << i) for i in range(3, 18))
)
BATCH_SECONDS = Instrument("winnow_batch_seconds", "s", "Duration of one batch on the model's thread", _MILLIS)
UNIQUE_TOKEN_RATIO = Instrument(
    "winnow_unique_token_ratio", "1", "Computed tokens / requested tokens", tuple(i / 20 for i in range(1, 21))
)
TOKENS = Instrument("winnow_tokens", "{token}", "Input tokens of answered items, computed or from a cache")
_KIND: Labels = {KIND: frozenset(AnswerKind)}
CACHE_HITS = Instrument("winnow_cache_hits", "{item}", "Items answered from a cache", labels=_KIND)
CACHE_MISSES = Instrument("winnow_cache_misses", "{item}", "Items that were not in a cache", labels=_KIND)
CACHE_ERRORS = Instrument(
    "winnow_cache_errors", "{error}", "Cache calls that failed; each counts as a miss",
    labels={DB_OPERATION: frozenset(CacheOperation), ERROR_TYPE: None},
)  # fmt: skip
WORKER_ATTEMPTS = Instrument(
    "winnow_worker_attempts", "{call}", "Calls sent to workers, by why they were sent",
    labels={**_KIND, ATTEMPT: frozenset(Attempt)},
)  # fmt: skip
WORKER_REPLICAS = Instrument(
    "winnow_worker_replicas", "{replica}", "Replicas of the workers that are known, by state",
    labels={**_KIND, STATE: frozenset(ReplicaState)},
)  # fmt: skip
SHED = Instrument(
    "winnow_shed", "{call}", "Calls refused because of load, deadline, state, quota or permission, by reason",
    labels={SHED_REASON: frozenset(Refusal)},
)  # fmt: skip
CALLER_TOKENS = Instrument(
    "winnow_caller_tokens", "{token}", "Input tokens computed for a caller; other: callers that no file lists",
    labels={CALLER: None},
)  # fmt: skip
CALLER_REFUSALS = Instrument(
    "winnow_caller_refusals", "{call}", "Refused calls of a caller, by reason; other: callers that no file lists",
    labels={CALLER: None, SHED_REASON: frozenset(Refusal)},
)  # fmt: skip
DEGRADED_ANSWERS = Instrument(
    "winnow_degraded", "{answer}", "Degraded responses, by stage and reason",
    labels={STAGE: frozenset(DegradedStage), SHED_REASON: frozenset(DegradedReason)},
)  # fmt: skip
