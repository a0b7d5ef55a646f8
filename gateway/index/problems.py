"""What a failure of the index's Redis means for the caller."""

from redis.exceptions import ResponseError

from gateway.redis_client import NotReplicatedError, QueueTimeoutError
from services.runtime.errors import PoolSaturated, Precondition, Problem, UpstreamUnavailable


class IndexSaturated(PoolSaturated):
    """Our connections to the index were all in use for as long as the call could wait."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.message = "Too much is asked of the index at once. Back off for the given delay, then retry."


def no_redis() -> Problem:
    """There is no Redis for collections."""
    return Precondition(
        "NO_INDEX",
        "This gateway has no Redis for collections. Set GATEWAY_REDIS_URL (or GATEWAY_INDEX_URL) to a Redis 8 and "
        "restart it, or search over inline documents.",
    )


def no_vector_sets() -> Problem:
    """The Redis is too old, or is no Redis."""
    return Precondition(
        "NO_VECTOR_SETS",
        "The Redis behind this gateway has no vector sets. Point GATEWAY_INDEX_URL at a Redis 8 (the cache may stay "
        "where it is) and restart the gateway, or search over inline documents.",
    )


def index_problem(error: Exception) -> Problem:
    """One of `redis_client.Unreachable`, ResponseError included, for our caller; Redis' own words stay out of it."""
    text = str(error)
    if isinstance(error, ResponseError):
        if "unknown command" in text:
            return no_vector_sets()
        if "OOM" in text:
            return UpstreamUnavailable("index", "is out of memory: raise its maxmemory or remove documents")
        if "READONLY" in text:
            return UpstreamUnavailable("index", "takes no writes now")
    if isinstance(error, QueueTimeoutError):
        return IndexSaturated()
    if isinstance(error, NotReplicatedError):
        return UpstreamUnavailable("index", "has too few replicas in step")
    return UpstreamUnavailable("index")
