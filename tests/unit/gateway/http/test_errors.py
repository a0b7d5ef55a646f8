import json

import grpc
import pytest

from gateway.http.errors import (
    HttpProblem,
    UnknownModel,
    cohere_shape,
    described,
    openai_shape,
    rerank_shape,
    response,
    status_shape,
    tei_shape,
)
from services.runtime.errors import (
    AlreadyExists,
    DeadlineTooShort,
    Internal,
    InvalidFields,
    NotReady,
    PermissionDenied,
    PoolSaturated,
    Precondition,
    Problem,
    Unauthenticated,
)


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (InvalidFields([("a", "is wrong")]), 400),
        (Precondition("NO", "Do this."), 400),
        (Unauthenticated(), 401),
        (PermissionDenied("c", "call", "m"), 403),
        (UnknownModel("a", "b"), 404),
        (AlreadyExists("collection", "a"), 409),
        (HttpProblem(413, "too large"), 413),
        (PoolSaturated(1), 429),
        (Internal(), 500),
        (NotReady("draining"), 503),
        (DeadlineTooShort(), 504),
    ],
)
def test_codes_have_a_status(problem: Problem, status: int) -> None:
    assert described(problem).http_status == status


def test_every_code_of_grpc_is_a_status_of_an_error() -> None:
    for code in grpc.StatusCode:
        problem = Problem("x")
        problem.code = code
        assert 400 <= described(problem).http_status < 600


def test_shapes() -> None:
    failure = described(InvalidFields([("texts[3]", "is odd"), ("b", "too")]), {"texts": "input"})
    openai = {
        "message": "input[3]: is odd; b: too",
        "type": "invalid_request_error",
        "param": "input[3]",
        "code": "invalid_field",
    }
    assert openai_shape(failure) == {"error": openai}
    assert cohere_shape(failure)["message"] == openai["message"]
    assert rerank_shape(failure) == {"error": openai, "message": openai["message"]}
    assert tei_shape(failure) == {"error": openai["message"], "error_type": "Validation"}
    error = status_shape(failure)["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert {detail["@type"].rpartition(".")[2] for detail in error["details"]} == {"ErrorInfo", "BadRequest"}


def test_a_delay_is_in_both_headers() -> None:
    answer = response(PoolSaturated(0.25), openai_shape)
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("1", "250")
    assert "retry-after" not in response(Internal(), openai_shape).headers


def test_an_incident_is_told() -> None:
    problem = Internal(RuntimeError("a secret"))
    body = json.loads(bytes(response(problem, openai_shape).body))
    assert problem.incident in body["error"]["message"]
    assert body["error"]["type"] == "server_error"
    assert "secret" not in str(body)
