"""Between the contract's shared types and the engine's."""

from __future__ import annotations

from services.engine.types import Lane, ModelInfo, Timings, Truncation
from winnow.common.v1 import common_pb2

TRUNCATION = {
    common_pb2.TRUNCATION_UNSPECIFIED: Truncation.END,
    common_pb2.TRUNCATION_END: Truncation.END,
    common_pb2.TRUNCATION_START: Truncation.START,
    common_pb2.TRUNCATION_ERROR: Truncation.ERROR,
}


def lane(priority: int, unspecified: Lane = Lane.INTERACTIVE) -> Lane:
    """The lane of a priority, `unspecified` where it names none."""
    match priority:
        case common_pb2.PRIORITY_INTERACTIVE:
            return Lane.INTERACTIVE
        case common_pb2.PRIORITY_BULK:
            return Lane.BULK
        case _:
            return unspecified


def identity(info: ModelInfo) -> common_pb2.ModelIdentity:
    """Which model answered."""
    return common_pb2.ModelIdentity(name=info.name, revision=info.revision, fingerprint=info.fingerprint)


def timings(total_s: float, spent: Timings) -> common_pb2.Timings:
    """Seconds as the contract's milliseconds."""
    return common_pb2.Timings(
        total_ms=total_s * 1e3,
        tokenize_ms=spent.tokenize_s * 1e3,
        queue_ms=spent.queue_s * 1e3,
        forward_ms=spent.forward_s * 1e3,
    )
