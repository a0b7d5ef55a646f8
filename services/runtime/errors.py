"""Every failure that a caller can see, and its conversion to a `google.rpc.Status`.

A `Problem` is raised anywhere below a handler; `services.runtime.rpc_status` sends it. Messages say what the caller can
do. Any other exception is a fault of this system: the caller gets an incident id, the log gets the rest.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "winnow"

# HTTP/2 trailers carry all this, and grpc refuses trailers of more than 8 KiB.
_MAX_VIOLATIONS = 8
_MAX_DESCRIPTION = 200
_MAX_MESSAGE = 320


class Problem(Exception):  # noqa: N818 - not every problem is an error of this system
    """A failure that the caller sees: `code` and `reason` by class, message and details by instance."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason: str = "INTERNAL"

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = _short(message, _MAX_MESSAGE)
        self.metadata: dict[str, str] = dict(metadata or {})

    @property
    def pushback_ms(self) -> int | None:
        """Milliseconds until a client may retry; negative: never; None: its own policy decides."""
        return None

    def details(self) -> Iterable[Message | AnyMessage]:
        """Status details in addition to ErrorInfo."""
        return ()


class InvalidFields(Problem):
    """An invalid request; each violation is (field path in the proto, what is wrong and what is allowed)."""

    code, reason = grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        self.violations = [
            (field, _short(description, _MAX_DESCRIPTION)) for field, description in violations[:_MAX_VIOLATIONS]
        ]
        more = len(violations) - len(self.violations)
        listed = "; ".join(f"{field}: {description}" for field, description in self.violations)
        super().__init__(listed + (f"; and {more} more" if more else ""))

    def details(self) -> Iterable[Message]:
        """A BadRequest with every field."""
        bad = error_details_pb2.BadRequest()
        for field, description in self.violations:
            bad.field_violations.add(field=field, description=description)
        return (bad,)


class InvalidField(InvalidFields):
    """One wrong field."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__([(field, description)])


class NotFound(Problem):
    """`what` is the kind of the missing thing ("collection"), `name` its name in the request."""

    code, reason = grpc.StatusCode.NOT_FOUND, "NOT_FOUND"

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f'There is no {what} "{name}".', metadata={"what": what, "name": name})


class AlreadyExists(Problem):
    """The name is taken."""

    code, reason = grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f'The {what} "{name}" exists already.', metadata={"what": what, "name": name})


class _Busy(Problem):
    def __init__(self, message: str, retry_after_s: float, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, metadata=metadata)
        self.retry_after_s = retry_after_s if 0 < retry_after_s < math.inf else 1.0

    def details(self) -> Iterable[Message]:
        """RetryInfo with the delay."""
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(int(self.retry_after_s * 1e9))
        return (info,)


class ReplicaFull(_Busy):
    """This replica has too much queued to answer in time. Another may have room."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "REPLICA_FULL"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("This replica's queue is full. Retry after the given delay, or on another replica.",
                         retry_after_s)  # fmt: skip

    @property
    def pushback_ms(self) -> int | None:
        """Estimated time until the queue has room."""
        return max(1, int(self.retry_after_s * 1000))


class PoolSaturated(_Busy):
    """Every replica is full: a retry would only add load."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"

    def __init__(self, retry_after_s: float, what: str = "All replicas are full") -> None:
        super().__init__(f"{what}. Back off for the given delay, then retry.", retry_after_s)

    @property
    def pushback_ms(self) -> int | None:
        """Negative: a retry policy must not retry."""
        return -1


class QuotaExceeded(_Busy):
    """The caller has used up its quota; `limit` says how much that is ("1000 tokens per second")."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"

    def __init__(self, caller: str, limit: str, retry_after_s: float) -> None:
        advice = "Send less, or retry after the given delay."
        super().__init__(f"{_quoted(caller)} has used up its quota of {limit}. {advice}", retry_after_s)
        self.caller, self.limit = caller, limit

    def details(self) -> Iterable[Message]:
        """A QuotaFailure with the caller as its subject, and RetryInfo."""
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(subject=self.caller, description=self.limit)
        return (failure, *super().details())

    @property
    def pushback_ms(self) -> int | None:
        """Negative: a retry policy must not retry."""
        return -1


class DeadlineTooShort(Problem):
    """The result cannot be ready before the caller's deadline, however idle the servers are."""

    code, reason = grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT"

    def __init__(self) -> None:
        super().__init__("The deadline is too short for this call's work. Allow more time, or send less.")


class NotReady(_Busy):
    """This replica accepts no calls now; `state` is "loading" or "draining"."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "NOT_READY"

    def __init__(self, state: str, retry_after_s: float = 1.0) -> None:
        super().__init__(f"This replica is {state}. Retry on another one, or after the given delay.", retry_after_s,
                         metadata={"state": state})  # fmt: skip


class UpstreamUnavailable(_Busy):
    """An upstream server is unreachable; `what` names it in the message ("embed worker")."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"

    def __init__(self, what: str, description: str = "cannot be reached", retry_after_s: float = 1.0) -> None:
        super().__init__(f"The {what} {description}. Retry after the given delay.", retry_after_s,
                         metadata={"upstream": what})  # fmt: skip

    @property
    def pushback_ms(self) -> int | None:
        """Negative: this server has retried already, and retries must not multiply."""
        return -1


class Precondition(Problem):
    """The system is not in the state that the call needs; `message` says how to change that."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "FAILED_PRECONDITION"

    def __init__(self, reason: str, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, metadata=metadata)
        self.reason = reason


class Unauthenticated(Problem):
    """No token, or a wrong one."""

    code, reason = grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"

    def __init__(self) -> None:
        super().__init__('Send a valid token in the call\'s metadata: "authorization: Bearer <token>".')


class PermissionDenied(Problem):
    """The caller is known, and may not do this; `what` says what it may not, `needs` what it would need."""

    code, reason = grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"

    def __init__(self, caller: str, what: str, needs: str) -> None:
        super().__init__(f"{_quoted(caller)} may not {what}. Ask the operator for {needs}.",
                         metadata={"caller": caller, "needs": needs})  # fmt: skip


class DeviceMemory(Problem):
    """The device has not enough memory for this item, even in a batch of its own."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "DEVICE_MEMORY"

    def __init__(self) -> None:
        super().__init__("The model's device has no memory for this input. Send shorter texts or a lower max_tokens.")


class NonFiniteResult(Problem):
    """The model gave NaN or infinity for this item."""

    code, reason = grpc.StatusCode.INTERNAL, "NON_FINITE"

    def __init__(self) -> None:
        super().__init__("The model gave no finite result for this text. Its neighbours are not affected.")


class Internal(Problem):
    """A fault of this system. The caller sees only the incident id; `cause` is for the log."""

    code, reason = grpc.StatusCode.INTERNAL, "INTERNAL"

    def __init__(self, cause: BaseException | None = None, *, incident: str | None = None) -> None:
        self.incident = incident or secrets.token_hex(8)
        super().__init__(f"Internal error. Quote incident {self.incident} to the operator.",
                         metadata={"incident": self.incident})  # fmt: skip
        self.cause = cause


class UpstreamStatus(Problem):
    """An upstream's status, passed on unchanged."""

    def __init__(self, status: status_pb2.Status, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(status.message)
        self.code, self.reason, self.status = code, reason, status


def to_status(problem: Problem) -> status_pb2.Status:
    """The problem as a `google.rpc.Status`, of a call or of one item."""
    if isinstance(problem, UpstreamStatus):
        return problem.status
    status = status_pb2.Status(code=problem.code.value[0], message=problem.message)
    info = error_details_pb2.ErrorInfo(reason=problem.reason, domain=DOMAIN, metadata=problem.metadata)
    status.details.add().Pack(info)
    for detail in problem.details():
        status.details.add().Pack(detail)
    return status


def with_field(status: status_pb2.Status, field: str) -> status_pb2.Status:
    """An item's error with the field path of the item in the caller's request."""
    bad = error_details_pb2.BadRequest()
    if any(detail.Unpack(bad) for detail in status.details):
        return to_status(InvalidFields([(field, violation.description) for violation in bad.field_violations]))
    return status


def _quoted(caller: str) -> str:
    return f'The caller "{caller}"' if caller else "A caller without a name"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
