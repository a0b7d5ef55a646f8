"""The degradations of a search: each way in which a stage can fall short, with its reason."""

from typing import NamedTuple

from gateway.index.store import Read
from gateway.index.vector_search import Found
from gateway.search.types import Degradation, Stage
from services.runtime.errors import DeadlineTooShort, DeviceMemory, PoolSaturated, Problem, QuotaExceeded
from services.runtime.telemetry.names import DegradedReason


class _Reasons(NamedTuple):
    partial: DegradedReason
    deadline: DegradedReason
    overloaded: DegradedReason
    unavailable: DegradedReason


_REASONS = {
    Stage.EMBED: _Reasons(
        DegradedReason.EMBED_PARTIAL,
        DegradedReason.EMBED_DEADLINE,
        DegradedReason.EMBED_OVERLOADED,
        DegradedReason.EMBED_UNAVAILABLE,
    ),
    Stage.RERANK: _Reasons(
        DegradedReason.RERANK_PARTIAL,
        DegradedReason.RERANK_DEADLINE,
        DegradedReason.RERANK_OVERLOADED,
        DegradedReason.RERANK_UNAVAILABLE,
    ),
}


def stage_failed(stage: Stage, problem: Problem) -> Degradation:
    """The embed or rerank stage failed as a whole."""
    reasons = _REASONS[stage]
    match problem:
        case DeadlineTooShort():
            return Degradation(stage, reasons.deadline, "There was not enough time.")
        case PoolSaturated() | QuotaExceeded() | DeviceMemory():
            return Degradation(stage, reasons.overloaded, problem.message)
        case _:
            return Degradation(stage, reasons.unavailable, problem.message)


def items_failed(stage: Stage, message: str) -> Degradation:
    """Some texts of the embed or rerank stage failed."""
    return Degradation(stage, _REASONS[stage].partial, message)


def shards_missing(shards: int, found: Found, read: Read) -> list[Degradation]:
    """What is missing in the answers of the index: shards that did not answer, and documents that it has lost."""
    degradations = []
    if missing := max(found.missing_shards, read.missing_shards):
        reason, what = DegradedReason.SHARD_UNAVAILABLE, "did not answer"
        if found.overloaded:
            reason, what = DegradedReason.RETRIEVE_OVERLOADED, "were not asked in time: the index has too many requests"
        message = f"{missing} of {shards} shards {what}. Their documents are missing."
        degradations.append(Degradation(Stage.RETRIEVE, reason, message))
    if lost := max(found.incomplete_shards, int(read.damaged)):
        message = (
            f"{lost} of {shards} shards have lost documents or parts of them. Upsert the collection's documents again."
        )
        degradations.append(Degradation(Stage.RETRIEVE, DegradedReason.SHARD_INCOMPLETE, message))
    return degradations
