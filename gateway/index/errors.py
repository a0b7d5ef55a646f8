"""Failures of the index, and what those of its Redis mean for the caller."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from gateway.index.collection import Collection
from gateway.redis.client import NotReplicatedError, QueueTimeoutError, Unreachable
from gateway.redis.faults import Fault, fault_of
from services.runtime.errors import PoolSaturated, Precondition, Problem, UpstreamUnavailable
from winnow.common.v1 import common_pb2

_LOCKED = "does not let this gateway in. The operator finds the cause in the gateway's log"
_DESCRIPTIONS = {
    Fault.OUT_OF_MEMORY: "is out of memory and stores nothing. Remove documents, or tell the operator",
    Fault.READ_ONLY: "takes no writes now. Tell the operator if that lasts",
    Fault.AUTHENTICATION: _LOCKED,
    Fault.PROTECTED: _LOCKED,
    Fault.NO_DATABASE: _LOCKED,
    Fault.NO_CLUSTER: _LOCKED,
    Fault.NO_PERMISSION: "does not let this gateway do that. The operator finds the cause in the gateway's log",
    Fault.LOADING: "is starting",
    Fault.BUSY: "is busy",
    Fault.NOT_SAVED: "takes no writes, since it cannot save them. Tell the operator",
    Fault.TOO_FEW_REPLICAS: "takes no writes, since it has too few replicas. Tell the operator if that lasts",
    Fault.TOO_MANY_CLIENTS: "takes no more connections. Tell the operator if that lasts",
    Fault.CLUSTER_DOWN: "has a part without a server now. Tell the operator if that lasts",
    Fault.MASTER_DOWN: "has a part without a server now. Tell the operator if that lasts",
    Fault.MOVING: "is moving the documents between servers",
    Fault.REFUSED: "refuses that. The operator finds the cause in the gateway's log",
    Fault.TIMEOUT: "did not answer in time",
}


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
    """One of `redis.client.Unreachable`, ResponseError included, for our caller; Redis' own words stay out of it."""
    if isinstance(error, QueueTimeoutError):
        return PoolSaturated(1.0, "Too much is asked of the index at once")
    if isinstance(error, NotReplicatedError):
        return UpstreamUnavailable("index", "has too few replicas in step")
    fault = fault_of(error)
    if fault is Fault.UNKNOWN_COMMAND:
        return no_vector_sets()
    return UpstreamUnavailable("index", _DESCRIPTIONS.get(fault, "cannot be reached"))


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turns what Redis fails with into a Problem."""
    try:
        yield
    except Unreachable as error:
        raise index_problem(error) from error


def wrong_model(collection: Collection, serving: common_pb2.ModelIdentity) -> Problem:
    """The collection was built with another model than the one that is served."""
    return Precondition(
        "MODEL_MISMATCH",
        f'Collection "{collection.name}" was built with {collection.model.name} ({collection.model.fingerprint}), but '
        f"{serving.name} ({serving.fingerprint}) is served. Upsert its documents into a new collection and point an "
        "alias at that one, or serve the old model.",
        metadata={
            "collection": collection.name,
            "built_with": collection.model.fingerprint,
            "serving": serving.fingerprint,
        },
    )


class _DataLoss(Problem):
    code, reason = grpc.StatusCode.DATA_LOSS, "DOCUMENT_LOST"


def document_lost(id_: str) -> Problem:
    """Parts of a document are gone from the index, or it may be one of those that are gone altogether."""
    return _DataLoss(
        f'Document "{id_}" is not whole in the index, or may be among documents that it has lost. Upsert it again.'
    )
