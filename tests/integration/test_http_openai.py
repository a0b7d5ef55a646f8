"""OpenAI's API over HTTP, at a gateway in this process."""

import base64
from collections.abc import AsyncIterator

import httpx2 as httpx
import numpy as np
import pytest

from services.runtime.errors import PoolSaturated
from tests.support.gateway import Running, running
from tests.support.http import client
from winnow.embed.v1 import embed_pb2


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    async with running(http_listen="127.0.0.1:0", http_model_aliases="text-embedding-3-small, ada") as gateway:
        yield gateway


@pytest.fixture
async def http(gateway: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with client(gateway) as http:
        yield http


async def test_base64_is_what_grpc_returns(gateway: Running, http: httpx.AsyncClient) -> None:
    texts = ["a cat", "a dog", "a cat"]
    expected = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=texts))
    answer = await http.post("/v1/embeddings", json={"model": "stand-in", "input": texts, "encoding_format": "base64"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [each["index"] for each in body["data"]] == [0, 1, 2]
    vectors = [base64.b64decode(each["embedding"]) for each in body["data"]]
    assert vectors == [result.embedding.data for result in expected.results]
    assert body["model"] == "stand-in"
    assert body["usage"] == {"prompt_tokens": 15, "total_tokens": 15}


async def test_floats_are_exact(gateway: Running, http: httpx.AsyncClient) -> None:
    expected = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["a cat"], dimensions=32))
    answer = await http.post("/v1/embeddings", json={"model": "ada", "input": "a cat", "dimensions": 32})
    [one] = answer.json()["data"]
    assert np.array(one["embedding"], dtype="<f4").tobytes() == expected.results[0].embedding.data


async def test_texts_are_documents_unless_the_client_says_queries(gateway: Running, http: httpx.AsyncClient) -> None:
    asked = {"model": "stand-in", "input": "a cat"}
    await http.post("/v1/embeddings", json=asked)
    await http.post("/v1/embeddings", json={**asked, "input_type": "query", "instruction": "Find cats"})
    first, second = gateway.embed_worker.requests
    assert first.input_type == embed_pb2.INPUT_TYPE_DOCUMENT
    assert (second.input_type, second.instruction) == (embed_pb2.INPUT_TYPE_QUERY, "Find cats")


@pytest.mark.parametrize("name", ["stand-in", "text-embedding-3-small", "ada"])
async def test_models_go_by_several_names(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/v1/models/{name}")).json()["id"] == name
    assert (await http.post("/v1/embeddings", json={"model": name, "input": "x"})).status_code == 200


async def test_another_model_is_not_found(gateway: Running, http: httpx.AsyncClient) -> None:
    for answer in (
        await http.post("/v1/embeddings", json={"model": "gpt-4o", "input": "x"}),
        await http.get("/v1/models/gpt-4o"),
    ):
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["code"] == "model_not_found"
        assert '"gpt-4o"' in error["message"]
        assert '"stand-in"' in error["message"]
    assert not gateway.embed_worker.requests


async def test_models_are_listed(http: httpx.AsyncClient) -> None:
    data = (await http.get("/v1/models")).json()["data"]
    assert [(each["id"], each["object"], each["task"]) for each in data] == [
        ("stand-in", "model", "embed"),
        ("stand-in", "model", "rerank"),
    ]


WRONG: list[tuple[dict[str, object], str, str]] = [
    ({"input": [1, 2, 3]}, "input", "check_embedding_ctx_length=False"),
    ({"input": [[1, 2], [3]]}, "input", "check_embedding_ctx_length=False"),
    ({"input": []}, "input", "1 to"),
    ({"input": "x", "encoding_format": "hex"}, "encoding_format", "base64"),
    ({"input": "x", "dimensions": 1}, "dimensions", "32"),
    ({"input": "x", "dimensions": -1}, "dimensions", "greater"),
    ({"input": "x", "instruction": "find"}, "instruction", "input_type"),
    ({}, "input", "required"),
]


async def test_what_is_wrong_is_named(http: httpx.AsyncClient) -> None:
    for body, field, says in WRONG:
        answer = await http.post("/v1/embeddings", json={"model": "stand-in", **body})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"].startswith(field)
        assert says in error["message"]


async def test_a_full_pool_says_when_to_come_back(gateway: Running, http: httpx.AsyncClient) -> None:
    gateway.embed_worker.problem = PoolSaturated(2.5)
    answer = await http.post("/v1/embeddings", json={"model": "stand-in", "input": "x"})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.headers["retry-after-ms"] == "2500"
    assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_a_fault_has_an_incident_and_nothing_else(gateway: Running, http: httpx.AsyncClient) -> None:
    gateway.embed_worker.problem = RuntimeError("a secret")
    answer = await http.post("/v1/embeddings", json={"model": "stand-in", "input": "x"})
    assert answer.status_code == 500
    assert "incident" in answer.json()["error"]["message"]
    assert "secret" not in answer.text
