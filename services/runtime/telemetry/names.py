"""Every name that leaves this system as telemetry: spans, attributes, metrics.

RPC names follow the stable RPC conventions (1.45), `gen_ai.*` the GenAI conventions, which are in development: a
rename there is an edit here and nowhere else. Texts are never among the values.
"""

from __future__ import annotations

from dataclasses import dataclass

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
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
DIMENSIONS = "gen_ai.embeddings.dimension.count"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
TOP_K = "gen_ai.retrieval.top_k"

# -- attributes: Redis, by the database conventions
DB_SYSTEM = "db.system.name"
DB_OPERATION = "db.operation.name"
DB_BATCH_SIZE = "db.operation.batch.size"

# -- attributes: our own
INCIDENT = "winnow.incident"
REASON = "winnow.reason"
ITEMS = "winnow.items"
TRUNCATED = "winnow.items.truncated"
FAILED = "winnow.items.failed"
RERANK_TOP_N = "winnow.rerank.top_n"
FINGERPRINT = "winnow.model.fingerprint"
LANE = "winnow.lane"
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


@dataclass(frozen=True, slots=True)
class Instrument:
    """A metric: OpenTelemetry name, unit (UCUM), what it says, and bucket bounds where it is a histogram.

    The Prometheus name is the same with "_" for ".", the unit spelled out where the name does not end in it, and
    "_total" for counters.
    """

    name: str
    unit: str
    description: str
    buckets: tuple[float, ...] | None = None


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)  # by the convention
_MILLIS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

SERVER_DURATION = Instrument("rpc.server.call.duration", "s", "Duration of inbound calls", _SECONDS)
CLIENT_DURATION = Instrument("rpc.client.call.duration", "s", "Duration of outbound calls, retries included", _SECONDS)
SERVER_ACTIVE = Instrument("winnow_active_calls", "{call}", "Inbound calls in progress")
QUEUE_TOKENS = Instrument("winnow_queue_tokens", "{token}", "Tokens that wait or run")
QUEUE_SECONDS = Instrument("winnow_queue_seconds", "s", "Queued tokens by measured tokens a second: scale on this")
TOKENS_PER_SECOND = Instrument("winnow_tokens_per_second", "{token}/s", "Measured speed of the model")
BATCH_TOKENS = Instrument(
    "winnow_batch_tokens", "{token}", "Tokens computed in a batch", tuple(float(1 << i) for i in range(3, 18))
)
BATCH_SECONDS = Instrument("winnow_batch_seconds", "s", "Time of one batch on the model's thread", _MILLIS)
UNIQUE_TOKEN_RATIO = Instrument(
    "winnow_unique_token_ratio", "1", "Tokens computed by tokens asked for", tuple(i / 20 for i in range(1, 21))
)
TOKENS = Instrument("winnow_tokens", "{token}", "Input tokens of answered items, computed or from a cache")
CACHE_HITS = Instrument("winnow_cache_hits", "{item}", "Items answered from a cache")
CACHE_MISSES = Instrument("winnow_cache_misses", "{item}", "Items that no cache had")
CACHE_ERRORS = Instrument("winnow_cache_errors", "{error}", "Cache calls that failed; each is a miss to the caller")
SHED = Instrument("winnow_shed", "{call}", "Calls refused for load, deadline, quota or state, by reason")
DEGRADED_ANSWERS = Instrument("winnow_degraded", "{answer}", "Answers that fell short, by stage and reason")
