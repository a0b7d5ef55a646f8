import grpc
import pytest

from bench.reliability.outcomes import Outcome, failure
from services.runtime.errors import DeadlineTooShort, PoolSaturated, Problem, QuotaExceeded, to_status

DETAILS = "grpc-status-details-bin"


def error(problem: Problem, *trailers: tuple[str, str]) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata((DETAILS, to_status(problem).SerializeToString()), *trailers)
    return grpc.aio.AioRpcError(problem.code, grpc.aio.Metadata(), metadata)


def test_a_refusal_says_its_reason_and_when_to_retry() -> None:
    found = failure(error(PoolSaturated(0.5), ("grpc-retry-pushback-ms", "-1")))
    assert found == ("RESOURCE_EXHAUSTED", "OVERLOADED", True, False, "-1")
    found = failure(error(QuotaExceeded("team", "5 tokens per second", 0.5)))
    assert found == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", True, True, "")
    assert failure(error(DeadlineTooShort()))[:3] == ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT", False)


def test_a_deadline_that_passed_at_the_caller_has_no_reason() -> None:
    passed = grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata())
    assert failure(passed) == ("DEADLINE_EXCEEDED", "", False, False, "")


@pytest.mark.parametrize(
    ("code", "reason", "refused", "explained"),
    [
        ("OK", "", False, True), ("DEADLINE_EXCEEDED", "", False, True),
        ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT", True, True), ("CANCELLED", "", False, False),
    ],
)  # fmt: skip
def test_an_outcome_is_a_refusal_if_the_server_gave_a_reason(
    code: str, reason: str, refused: bool, explained: bool
) -> None:
    outcome = Outcome(1.0, 0.2, 0.0, code, reason)
    assert (outcome.refused, outcome.explained) == (refused, explained)
    assert Outcome(*outcome.as_list()) == outcome  # type: ignore[arg-type]
