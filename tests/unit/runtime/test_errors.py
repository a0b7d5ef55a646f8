import re
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from services.runtime import errors, rpc_status
from tests.support.scripted import Scripted
from tests.support.serving import details, rich_status, serving
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

# One of each kind: (problem, code, reason, pushback trailer).
CODES = grpc.StatusCode
EACH = [
    (errors.InvalidField("texts[3]", "is wrong"), CODES.INVALID_ARGUMENT, "INVALID_FIELD", None),
    (errors.InvalidFields([("a", "x"), ("b", "y")]), CODES.INVALID_ARGUMENT, "INVALID_FIELD", None),
    (errors.NotFound("collection", "docs"), CODES.NOT_FOUND, "NOT_FOUND", None),
    (errors.AlreadyExists("collection", "docs"), CODES.ALREADY_EXISTS, "ALREADY_EXISTS", None),
    (errors.ReplicaFull(0.25), CODES.UNAVAILABLE, "REPLICA_FULL", "250"),
    (errors.PoolSaturated(2.0), CODES.RESOURCE_EXHAUSTED, "OVERLOADED", "-1"),
    (errors.QuotaExceeded("search", "9 tokens per second", 2.0), CODES.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", "-1"),
    (
        errors.PermissionDenied("search", "call Embed", "the group read"),
        CODES.PERMISSION_DENIED,
        "PERMISSION_DENIED",
        None,
    ),
    (errors.DeadlineTooShort(), CODES.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", None),
    (errors.NotReady("loading"), CODES.UNAVAILABLE, "NOT_READY", None),
    (errors.UpstreamUnavailable("embed worker"), CODES.UNAVAILABLE, "UPSTREAM_UNAVAILABLE", "-1"),
    (
        errors.Precondition("VECTOR_SETS_MISSING", "Use Redis 8."),
        CODES.FAILED_PRECONDITION,
        "VECTOR_SETS_MISSING",
        None,
    ),
    (errors.Unauthenticated(), CODES.UNAUTHENTICATED, "UNAUTHENTICATED", None),
    (errors.DeviceMemory(), CODES.RESOURCE_EXHAUSTED, "DEVICE_MEMORY", None),
    (errors.NonFiniteResult(), CODES.INTERNAL, "NON_FINITE", None),
    (errors.Internal(ValueError("secret")), CODES.INTERNAL, "INTERNAL", None),
]


def raising(problem: BaseException) -> Scripted:
    async def answer(
        request: embed_pb2.EmbedRequest | embed_pb2.EmbedStreamRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        raise problem

    return Scripted(answer)


def test_each_kind_of_problem_is_in_the_list() -> None:
    def kinds(base: type[errors.Problem]) -> set[type[errors.Problem]]:
        return {base} | {kind for sub in base.__subclasses__() for kind in kinds(sub)}

    ours = {kind for kind in kinds(errors.Problem) if kind.__module__ == errors.__name__}  # others may be imported
    public = {kind for kind in ours if not kind.__name__.startswith("_")}
    assert {type(problem) for problem, *_ in EACH} == public - {errors.Problem, errors.UpstreamStatus}


@pytest.mark.parametrize(("problem", "code", "reason", "pushback"), EACH, ids=lambda v: type(v).__name__)
async def test_on_the_wire(problem: errors.Problem, code: grpc.StatusCode, reason: str, pushback: str | None) -> None:
    async with serving(raising(problem)) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
        stream = stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest()]), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            async for _ in stream:
                pass
    for error in (unary.value, streamed.value):
        seen = rich_status(error)
        assert (seen.code, seen.reason) == (code, reason)
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", seen.reason)
        assert len(seen.reason) <= 63
        assert seen.trailers.get("grpc-retry-pushback-ms") == pushback
        assert seen.status.message == problem.message
        assert "secret" not in str(seen.status)
        assert errors.to_status(problem) == seen.status


def test_a_used_up_quota_names_caller_and_limit() -> None:
    status = errors.to_status(errors.QuotaExceeded("search", "9 tokens per second", 1.5))
    [violation] = details(status, error_details_pb2.QuotaFailure)[0].violations
    assert (violation.subject, violation.description) == ("search", "9 tokens per second")
    [info] = details(status, error_details_pb2.RetryInfo)
    assert info.retry_delay.ToMilliseconds() == 1500
    assert status.message.startswith('The caller "search" has used up its quota of 9 tokens per second.')
    assert errors.QuotaExceeded("", "a limit", 1.0).message.startswith("A caller without a name has")


async def test_retry_info_says_when() -> None:
    (info,) = details(errors.to_status(errors.PoolSaturated(1.5)), error_details_pb2.RetryInfo)
    assert info.retry_delay.ToMilliseconds() == 1500
    (info,) = details(errors.to_status(errors.ReplicaFull(float("inf"))), error_details_pb2.RetryInfo)
    assert info.retry_delay.ToMilliseconds() == 1000


def as_rpc_error(status: status_pb2.Status, code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    trailers = grpc.aio.Metadata((rpc_status.DETAILS_KEY, status.SerializeToString()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, status.message)


@pytest.mark.parametrize(("problem", "code", "reason", "pushback"), EACH, ids=lambda v: type(v).__name__)
def test_an_upstreams_status_is_told_again(
    problem: errors.Problem, code: grpc.StatusCode, reason: str, pushback: str | None
) -> None:
    again = rpc_status.from_rpc_error(as_rpc_error(errors.to_status(problem), code), "embed worker")
    if isinstance(problem, errors.Unauthenticated | errors.PermissionDenied):  # our credentials, not the caller's
        assert isinstance(again, errors.Internal)
    elif isinstance(problem, errors.UpstreamUnavailable):
        assert again.reason == reason
    else:
        assert errors.to_status(again) == errors.to_status(problem)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (CODES.UNAVAILABLE, errors.UpstreamUnavailable),
        (CODES.CANCELLED, errors.UpstreamUnavailable),
        (CODES.DEADLINE_EXCEEDED, errors.DeadlineTooShort),
        (CODES.UNKNOWN, errors.Internal),
        (CODES.UNIMPLEMENTED, errors.Internal),
        (CODES.RESOURCE_EXHAUSTED, errors.Internal),
    ],
)
def test_text_from_within_grpc_is_not_told(code: grpc.StatusCode, kind: type[errors.Problem]) -> None:
    inner = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "ipv4:10.0.0.7:50051: refused")
    problem = rpc_status.from_rpc_error(inner, "embed worker")
    assert isinstance(problem, kind)
    assert "10.0.0.7" not in str(errors.to_status(problem))


def test_the_incident_is_logged_without_the_exceptions_text(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("the caller's secret text")
    except ValueError as error:
        problem = rpc_status.to_problem(error)
    assert isinstance(problem, errors.Internal)
    assert problem.incident in caplog.text
    assert "ValueError" in caplog.text
    assert "test_errors.py" in caplog.text
    assert "secret text" not in caplog.text.replace('raise ValueError("the caller\'s secret text")', "")
    assert rpc_status.to_problem(problem) is problem
    assert len(caplog.records) == 1


def test_exceptions_that_name_each_other_as_cause_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    rpc_status.to_problem(first)
    assert caplog.text.count("ValueError") == caplog.text.count("KeyError") == 1


async def test_many_long_violations_still_reach_the_caller() -> None:
    problem = errors.InvalidFields([(f"texts[{i}]", "x" * 1000) for i in range(1000)])
    async with serving(raising(problem)) as served:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await embed_pb2_grpc.EmbedServiceStub(served.channel).Embed(embed_pb2.EmbedRequest(), timeout=10)
    seen = rich_status(error.value)
    assert seen.code is CODES.INVALID_ARGUMENT
    assert seen.reason == "INVALID_FIELD"
    assert seen.fields == [f"texts[{i}]" for i in range(8)]
    assert seen.status.message.endswith("…")


async def test_the_longest_name_still_reaches_the_caller() -> None:
    problem = errors.NotFound("document", "語" * 170)
    async with serving(raising(problem)) as served:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await embed_pb2_grpc.EmbedServiceStub(served.channel).Embed(embed_pb2.EmbedRequest(), timeout=10)
    assert rich_status(error.value).reason == "NOT_FOUND"
