"""The one table from the engine's errors to the Problems that a caller sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.engine import errors as engine
from services.runtime import errors


def problem_of(error: engine.EngineError) -> errors.Problem:
    """What an engine error, of a whole request or of one item, means to the caller."""
    match error:
        case engine.InvalidInput():
            return errors.InvalidField(error.field, error.description)
        case engine.Overloaded():
            return errors.ReplicaFull(error.retry_after_s)
        case engine.DeadlineTooShort():
            return errors.DeadlineTooShort()
        case engine.Draining():
            return errors.NotReady("draining")
        case engine.OutOfMemory():
            return errors.DeviceMemory()
        case engine.NonFinite():
            return errors.NonFiniteResult()
        case _:  # ModelBroken and whatever is unforeseen
            return errors.Internal(error)


@contextmanager
def engine_problems() -> Iterator[None]:
    """Around calls of the engine: its errors come out as problems."""
    try:
        yield
    except engine.EngineError as error:
        raise problem_of(error) from error
