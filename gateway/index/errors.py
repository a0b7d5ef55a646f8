"""Errors of the index, and what errors of its Redis mean for the caller."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from gateway.index.collection import Collection
from gateway.redis.client import NotReplicatedError, QueueTimeoutError, Unreachable
from gateway.redis.faults import Fault, fault_of
from services.runtime.errors import PoolSaturated, Precondition, Problem, UpstreamUnavailable
from winnow.common.v1 import common_pb2

_REJECTED = "rejects this gateway. The operator finds the cause in the gateway's log"
_DESCRIPTIONS = {
    Fault.OUT_OF_MEMORY: "is out of memory. Delete documents, or tell the operator",
    Fault.READ_ONLY: "accepts no writes now. Tell the operator if that lasts",
    Fault.AUTHENTICATION: _REJECTED,
    Fault.PROTECTED: _REJECTED,
    Fault.NO_DATABASE: _REJECTED,
    Fault.NO_CLUSTER: _REJECTED,
    Fault.NO_PERMISSION: "does not permit this gateway to do that. The operator finds the cause in the gateway's log",
    Fault.LOADING: "is starting",
    Fault.BUSY: "is busy",
    Fault.NOT_SAVED: "accepts no writes because it cannot save them. Tell the operator",
    Fault.TOO_FEW_REPLICAS: "accepts no writes because it has too few replicas. Tell the operator if that lasts",
    Fault.TOO_MANY_CLIENTS: "accepts no more connections. Tell the operator if that lasts",
    Fault.CLUSTER_DOWN: "has a part without a server. Tell the operator if that lasts",
    Fault.MASTER_DOWN: "has a part without a server. Tell the operator if that lasts",
    Fault.MOVING: "is moving the documents between servers",
    Fault.REFUSED: "refuses the request. The operator finds the cause in the gateway's log",
    Fault.TIMEOUT: "did not answer in time",
}


def no_redis() -> Problem:
    """No Redis is configured for collections."""
    return Precondition(
        "NO_INDEX",
        "This gateway has no Redis for collections. Set GATEWAY_REDIS_URL (or GATEWAY_INDEX_URL) to a Redis 8 and "
        "restart it, or search over inline documents.",
    )


def no_vector_sets() -> Problem:
    """The server is an older Redis, or is not a Redis."""
    return Precondition(
        "NO_VECTOR_SETS",
        "The Redis of this gateway has no vector sets. Set GATEWAY_INDEX_URL to a Redis 8 (the cache may keep its "
        "server) and restart the gateway, or search over inline documents.",
    )


def index_problem(error: Exception) -> Problem:
    """An error of Redis, ResponseError included, as a Problem for the caller, without the text of Redis."""
    if isinstance(error, QueueTimeoutError):
        return PoolSaturated(1.0, "The index has too many concurrent requests")
    if isinstance(error, NotReplicatedError):
        return UpstreamUnavailable("index", "has too few replicas without lag")
    fault = fault_of(error)
    if fault is Fault.UNKNOWN_COMMAND:
        return no_vector_sets()
    return UpstreamUnavailable("index", _DESCRIPTIONS.get(fault, "cannot be reached"))


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raises errors of Redis as Problems."""
    try:
        yield
    except Unreachable as error:
        raise index_problem(error) from error


def wrong_model(collection: Collection, serving: common_pb2.ModelIdentity) -> Problem:
    """The collection was built with another model than the served one."""
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
    """The index has lost parts of a document, or documents that it may be one of."""
    return _DataLoss(f'The index may have lost document "{id_}" or parts of it. Upsert it again.')
