"""The one table from the engine's errors to what a caller is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.engine import errors as engine
from services.runtime import errors as told


def problem_of(error: engine.EngineError) -> told.Problem:
    """What an engine error, of a whole request or of one item, means to the caller."""
    match error:
        case engine.InvalidInput():
            return told.InvalidField(error.field, error.description)
        case engine.Overloaded():
            return told.ReplicaFull(error.retry_after_s)
        case engine.DeadlineTooShort():
            return told.DeadlineTooShort()
        case engine.Draining():
            return told.NotReady("draining")
        case engine.OutOfMemory():
            return told.DeviceMemory()
        case engine.NonFinite():
            return told.NonFiniteResult()
        case _:  # ModelBroken and whatever is unforeseen
            return told.Internal(error)


@contextmanager
def engine_problems() -> Iterator[None]:
    """Around calls of the engine: its errors come out as problems."""
    try:
        yield
    except engine.EngineError as error:
        raise problem_of(error) from error
