"""Problems as HTTP responses, in the shape of each API."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from starlette.responses import Response

from services.runtime.errors import InvalidFields, NotFound, Problem, to_status

_C = grpc.StatusCode
_HTTP_STATUS = {
    _C.CANCELLED: 499,
    _C.INVALID_ARGUMENT: 400,
    _C.FAILED_PRECONDITION: 400,
    _C.OUT_OF_RANGE: 400,
    _C.UNAUTHENTICATED: 401,
    _C.PERMISSION_DENIED: 403,
    _C.NOT_FOUND: 404,
    _C.ALREADY_EXISTS: 409,
    _C.ABORTED: 409,
    _C.RESOURCE_EXHAUSTED: 429,
    _C.UNIMPLEMENTED: 501,
    _C.UNAVAILABLE: 503,
    _C.DEADLINE_EXCEEDED: 504,
}


_SAME: Mapping[str, str] = {}


class HttpProblem(Problem):
    """A problem of HTTP itself, with its own status, such as a body that is too large."""

    reason = "INVALID_REQUEST"

    def __init__(self, http_status: int, message: str, code: grpc.StatusCode = _C.INVALID_ARGUMENT) -> None:
        super().__init__(message)
        self.http_status, self.code = http_status, code


class UnknownModel(NotFound):
    """No model of this name is served."""

    reason = "MODEL_NOT_FOUND"

    def __init__(self, name: str, served: str) -> None:
        super().__init__("model", name)
        self.message = f'There is no model "{name[:200]}" here. This server has "{served}".'


@dataclass(frozen=True, slots=True)
class Failure:
    """What the shapes tell of a problem. `field`: the first field at fault, if there is one."""

    http_status: int
    status: status_pb2.Status
    code: grpc.StatusCode
    reason: str
    field: str | None

    @property
    def message(self) -> str:
        """What the caller can do."""
        return str(self.status.message)


Shape: TypeAlias = Callable[[Failure], dict[str, Any]]


def openai_shape(failure: Failure) -> dict[str, Any]:
    """`error` with message, type, param and code, as OpenAI's clients read it."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 404: "not_found_error"}
    default = "invalid_request_error" if failure.http_status < 500 else "server_error"
    return {
        "error": {
            "message": failure.message,
            "type": kind.get(failure.http_status, default),
            "param": failure.field,
            "code": failure.reason.lower(),
        }
    }


def cohere_shape(failure: Failure) -> dict[str, Any]:
    """`message`, as Cohere's clients read it."""
    return {"message": failure.message, "code": failure.reason.lower()}


def rerank_shape(failure: Failure) -> dict[str, Any]:
    """Both: /v1/rerank has clients of Jina, vLLM and Cohere."""
    return {**openai_shape(failure), "message": failure.message}


_TEI_TYPES = {400: "Validation", 413: "Validation", 422: "Validation", 424: "Backend", 429: "Overloaded"}


def tei_shape(failure: Failure) -> dict[str, Any]:
    """`error` and `error_type`, as TEI writes them."""
    return {"error": failure.message, "error_type": _TEI_TYPES.get(failure.http_status, "Backend")}


def status_shape(failure: Failure) -> dict[str, Any]:
    """`error` with the google.rpc.Status, as Google's APIs write it."""
    error = json_format.MessageToDict(failure.status)
    return {"error": {**error, "code": failure.http_status, "status": failure.code.name}}


def response(problem: Problem, shape: Shape, fields: Mapping[str, str] = _SAME) -> Response:
    """The problem as a response, with the delay of a retry in both headers that clients read.

    `fields`: the API's names of fields that have another one in the protos.
    """
    failure = described(problem, fields)
    headers = {}
    delay = next((delay for detail in failure.status.details if (delay := _delay(detail)) is not None), None)
    if delay is not None:
        headers = {"retry-after": str(math.ceil(delay)), "retry-after-ms": str(max(1, round(delay * 1e3)))}
    if failure.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    body = json.dumps(shape(failure), ensure_ascii=False).encode()
    return Response(body, failure.http_status, headers, "application/json")


def described(problem: Problem, fields: Mapping[str, str] = _SAME) -> Failure:
    """The problem with its HTTP status."""
    status = _renamed(to_status(problem), fields)
    known = _HTTP_STATUS.get(problem.code, 500)
    http_status = problem.http_status if isinstance(problem, HttpProblem) else known
    return Failure(http_status, status, problem.code, problem.reason, _field(status))


def _renamed(status: status_pb2.Status, fields: Mapping[str, str]) -> status_pb2.Status:
    bad = error_details_pb2.BadRequest()
    if not fields or not any(detail.Unpack(bad) for detail in status.details):
        return status
    named = re.compile(r"^\w+")
    return to_status(
        InvalidFields(
            [
                (named.sub(lambda found: fields.get(found[0], found[0]), violation.field), violation.description)
                for violation in bad.field_violations
            ]
        )
    )


def _field(status: status_pb2.Status) -> str | None:
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(bad):
            return next((violation.field for violation in bad.field_violations), None)
    return None


def _delay(detail: Any) -> float | None:
    info = error_details_pb2.RetryInfo()
    return info.retry_delay.ToNanoseconds() / 1e9 if detail.Unpack(info) else None
