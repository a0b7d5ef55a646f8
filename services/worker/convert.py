"""Conversions between the contract's common types and the engine's types."""

from __future__ import annotations

from services.engine.types import ModelInfo, Priority, Timings, Truncation
from winnow.common.v1 import common_pb2

TRUNCATION = {
    common_pb2.TRUNCATION_END: Truncation.END,
    common_pb2.TRUNCATION_START: Truncation.START,
    common_pb2.TRUNCATION_ERROR: Truncation.ERROR,
}
PRIORITY = {
    common_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    common_pb2.PRIORITY_BULK: Priority.BULK,
}


def identity(info: ModelInfo) -> common_pb2.ModelIdentity:
    """The model's identity in the contract."""
    return common_pb2.ModelIdentity(name=info.name, revision=info.revision, fingerprint=info.fingerprint)


def timings(spent: Timings) -> common_pb2.Timings:
    """The engine's seconds as milliseconds; `total_ms` is not set."""
    return common_pb2.Timings(
        tokenize_ms=spent.tokenize_s * 1e3,
        queue_ms=spent.queue_s * 1e3,
        forward_ms=spent.forward_s * 1e3,
    )
