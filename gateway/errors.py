"""Failures that only the gateway has."""

import grpc
from google.rpc import error_details_pb2, status_pb2

from gateway.index.catalogue import Collection
from services.runtime.errors import Internal, Precondition, Problem, UpstreamStatus
from winnow.common.v1 import common_pb2


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


def as_problem(status: status_pb2.Status | None) -> Problem:
    """An item's error as the failure of a whole call."""
    if status is None:
        return Internal()
    code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.INTERNAL)
    info = error_details_pb2.ErrorInfo()
    reason = next((info.reason for detail in status.details if detail.Unpack(info)), code.name)
    return UpstreamStatus(status, code, reason)
