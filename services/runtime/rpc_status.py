"""Converts exceptions to gRPC statuses, and upstream gRPC errors back to Problems."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from services.runtime.errors import (
    DOMAIN,
    DeadlineTooShort,
    Internal,
    NotReady,
    PoolSaturated,
    Problem,
    ReplicaFull,
    UpstreamStatus,
    UpstreamUnavailable,
    to_status,
)

DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# Trailers hold the details in base64. grpc refuses more than 8 KiB of them, and sends an error of its own instead.
_MAX_DETAILS_BYTES = 3500

log = logging.getLogger("winnow.incident")

_M = TypeVar("_M", bound=Message)


def to_problem(error: BaseException) -> Problem:
    """The Problem that a handler's exception means to the caller.

    An exception that is not a Problem becomes `Internal` and is logged here, once, with its incident id and the trace
    id of the current span. Its message may quote a caller's text, so it is logged at DEBUG only.
    """
    match error:
        case Problem():
            problem: Problem = error
        case grpc.aio.AioRpcError():
            problem = from_rpc_error(error)
        case _:
            problem = Internal(error)
    if isinstance(problem, Internal) and problem.cause is not None:
        cause, problem.cause = problem.cause, None
        log.error("incident %s: %s", problem.incident, _frames(cause), extra={"incident": problem.incident})
        log.debug("incident %s in full", problem.incident, exc_info=cause)
    return problem


def was_cancelled() -> bool:
    """True if this task was cancelled, as grpc.aio does if the caller is gone."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_stray(error: asyncio.CancelledError) -> bool:
    """True for a CancelledError although this task was not cancelled: it awaited a future that was, for example.

    Unhandled, it ends a grpc.aio handler without a status, and the client waits until its deadline.
    """
    return not was_cancelled()


async def abort(context: grpc.aio.ServicerContext[Any, Any], problem: Problem) -> NoReturn:
    """Ends the call with the problem's status, details and, if it has one, retry pushback."""
    status = to_status(problem)
    if status.ByteSize() > _MAX_DETAILS_BYTES:
        del status.details[1:]
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if problem.pushback_ms is not None:
        trailers.append((PUSHBACK_KEY, str(problem.pushback_ms)))
    await context.abort(problem.code, status.message, trailing_metadata=tuple(trailers))
    raise AssertionError("unreachable: context.abort always raises")


def from_rpc_error(error: grpc.aio.AioRpcError, what: str = "worker") -> Problem:
    """The Problem that an upstream's failed call means to our own caller; `what` names the upstream in messages.

    A status that the upstream meant for the caller is passed on unchanged. Everything else (grpc's own messages,
    addresses) stays in the log.
    """
    status = _rich(error)
    info = _info(status)
    if status is None or info is None:
        match error.code():
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                return UpstreamUnavailable(what)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineTooShort()
            case _:
                return Internal(error)
    delay = _retry_delay(status)
    match error.code(), info.reason:
        case grpc.StatusCode.UNAVAILABLE, ReplicaFull.reason:
            return ReplicaFull(delay)
        case grpc.StatusCode.UNAVAILABLE, NotReady.reason:
            return NotReady(info.metadata.get("state") or "not ready", delay)
        case grpc.StatusCode.UNAVAILABLE, _:
            return UpstreamUnavailable(what, retry_after_s=delay)
        case grpc.StatusCode.RESOURCE_EXHAUSTED, PoolSaturated.reason:
            return PoolSaturated(delay)
        case grpc.StatusCode.DEADLINE_EXCEEDED, _:
            return DeadlineTooShort()
        case grpc.StatusCode.INTERNAL, Internal.reason:
            return Internal(incident=info.metadata.get("incident"))
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED, _:
            return Internal(error)  # our credentials, not the caller's
        case code, reason:
            return UpstreamStatus(status, code, reason)


def _rich(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _unpacked(status: status_pb2.Status | None, kind: type[_M]) -> Iterator[_M]:
    for detail in status.details if status else ():
        message = kind()
        if detail.Unpack(message):
            yield message


def _info(status: status_pb2.Status | None) -> error_details_pb2.ErrorInfo | None:
    return next((i for i in _unpacked(status, error_details_pb2.ErrorInfo) if i.domain == DOMAIN), None)


def _retry_delay(status: status_pb2.Status) -> float:
    return next((i.retry_delay.ToNanoseconds() / 1e9 for i in _unpacked(status, error_details_pb2.RetryInfo)), 1.0)


def _frames(error: BaseException) -> str:
    """Types and code lines of an exception and its causes, without their messages."""
    parts: list[str] = []
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        parts.append(f"{type(cause).__qualname__}\n{''.join(traceback.format_tb(cause.__traceback__)).rstrip()}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\ncaused by ".join(parts)
