"""Converts the engine's errors to Problems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.engine import errors as engine
from services.runtime import errors


def problem_of(error: engine.EngineError) -> errors.Problem:
    """The Problem of an engine error, for a whole request or one item."""
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
        case _:  # ModelBroken and unexpected errors
            return errors.Internal(error)


@contextmanager
def engine_problems() -> Iterator[None]:
    """Converts the engine errors raised in the `with` block to Problems."""
    try:
        yield
    except engine.EngineError as error:
        raise problem_of(error) from error
