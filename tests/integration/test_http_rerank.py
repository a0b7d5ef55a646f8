"""Reranking over HTTP as clients of Jina, vLLM, Cohere and TEI ask for it, and Cohere's and TEI's embeddings."""

import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from services.api.vectors import encode
from tests.support.gateway import Running, running
from tests.support.http import client
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2

DOCUMENTS = ["a dog", "the red cat", "cat", "nothing"]
ASKED = {"model": "stand-in", "query": "red cat", "documents": DOCUMENTS}


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    async with running(http_listen="127.0.0.1:0") as gateway:
        yield gateway


@pytest.fixture
async def http(gateway: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with client(gateway) as http:
        yield http


async def scores(gateway: Running, **fields: Any) -> list[tuple[int, float]]:
    request = rerank_pb2.RerankRequest(query="red cat", documents=DOCUMENTS, **fields)
    return [(result.index, result.score) for result in (await gateway.rerank.Rerank(request)).results]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
async def test_order_and_scores_are_those_of_grpc(gateway: Running, http: httpx.AsyncClient, path: str) -> None:
    for top_n in (None, 2):
        body = (await http.post(path, json={**ASKED, **({"top_n": top_n} if top_n else {})})).json()
        assert [(each["index"], each["relevance_score"]) for each in body["results"]] == await scores(
            gateway, top_n=top_n
        )
        assert body["id"]


async def test_documents_are_strings_or_objects_and_returned_as_each_version_does(http: httpx.AsyncClient) -> None:
    objects = {**ASKED, "documents": [{"text": text, "title": "x"} for text in DOCUMENTS], "top_n": 1}
    for path, sent, returned in (
        ("/v1/rerank", {}, True),
        ("/v1/rerank", {"return_documents": False}, False),
        ("/v2/rerank", {}, False),
        ("/v2/rerank", {"return_documents": True}, True),
    ):
        [best] = (await http.post(path, json={**objects, **sent})).json()["results"]
        assert best["index"] == 1
        assert best.get("document") == ({"text": "the red cat"} if returned else None)


async def test_a_limit_of_tokens_is_put_within_the_models(gateway: Running, http: httpx.AsyncClient) -> None:
    for sent, used in ((1, 128), (200, 200), (4096, 512)):
        await http.post("/v2/rerank", json={**ASKED, "query": f"q{sent}", "max_tokens_per_doc": sent})
        assert gateway.rerank_worker.requests[-1].max_tokens == used


async def test_tei_ranks(gateway: Running, http: httpx.AsyncClient) -> None:
    asked = {"query": "red cat", "texts": DOCUMENTS}
    body = (await http.post("/rerank", json=asked)).json()
    assert [(each["index"], each["score"]) for each in body] == await scores(gateway)
    raw = (await http.post("/rerank", json={**asked, "raw_scores": True, "return_text": True})).json()
    assert raw[0]["score"] == pytest.approx(np.log(body[0]["score"] / (1 - body[0]["score"])))
    assert raw[0]["text"] == "the red cat"


WRONG: list[tuple[str, dict[str, Any], Callable[[Any], bool]]] = [
    ("/v1/rerank", {**ASKED, "model": "other"}, lambda body: body["message"] == body["error"]["message"]),
    ("/v2/rerank", {**ASKED, "model": "other"}, lambda body: 'no model "other"' in body["message"]),
    ("/v2/rerank", {**ASKED, "documents": [3]}, lambda body: "documents[0]" in body["message"]),
    ("/v2/rerank", {**ASKED, "query": " "}, lambda body: "query: is empty" in body["message"]),
    ("/v2/embed", {"model": "stand-in"}, lambda body: "texts" in body["message"]),
    ("/rerank", {"query": "q", "texts": []}, lambda body: body["error"].startswith("texts: has 0 items")),
    ("/embed", {"inputs": []}, lambda body: body["error_type"] == "Validation" and "inputs" in body["error"]),
    ("/embed", {"inputs": "NAN"}, lambda body: "no finite result" in body["error"]),
    ("/predict", {"inputs": "x"}, lambda body: "No classification model" in body["error"]),
]


async def test_errors_have_the_shape_of_the_api(http: httpx.AsyncClient) -> None:
    for path, body, told in WRONG:
        answer = await http.post(path, json=body)
        assert answer.status_code >= 400
        assert told(answer.json()), (path, body, answer.text)


async def test_cohere_embeds_in_every_type(gateway: Running, http: httpx.AsyncClient) -> None:
    texts = ["a cat", "a dog"]
    request = embed_pb2.EmbedRequest(texts=texts, input_type=embed_pb2.INPUT_TYPE_QUERY, dimensions=64)
    expected = [result.embedding.data for result in (await gateway.embed.Embed(request)).results]
    kinds = ["float", "base64", "int8", "uint8", "binary", "ubinary"]
    asked = {
        "model": "stand-in",
        "texts": texts,
        "input_type": "search_query",
        "embedding_types": kinds,
        "output_dimension": 64,
    }
    body = (await http.post("/v2/embed", json=asked)).json()
    found = body["embeddings"]
    assert [np.array(row, "<f4").tobytes() for row in found["float"]] == expected
    assert [base64.b64decode(row) for row in found["base64"]] == expected
    rows = np.stack([np.frombuffer(data, "<f4") for data in expected])
    whole = [each.data for each in encode(rows, embed_pb2.ENCODING_INT8)]
    assert [np.array(row, np.int8).tobytes() for row in found["int8"]] == whole
    assert np.array_equal(np.array(found["uint8"]) - 128, np.array(found["int8"]))
    bits = [each.data for each in encode(rows, embed_pb2.ENCODING_BINARY)]
    assert [np.array(row, np.uint8).tobytes() for row in found["ubinary"]] == bits
    assert np.array_equal(np.array(found["ubinary"]) - 128, np.array(found["binary"]))
    assert body["response_type"] == "embeddings_by_type"
    inputs = [{"content": [{"type": "text", "text": text}]} for text in texts]
    joined = await http.post("/v2/embed", json={"model": "stand-in", "inputs": inputs, "input_type": "search_query"})
    assert len(joined.json()["embeddings"]["float"][0]) == 96
    first = (await http.post("/v1/embed", json={**asked, "embedding_types": None})).json()
    assert (first["embeddings"], first["response_type"]) == (found["float"], "embeddings_floats")
    assert (await http.post("/v1/embed", json=asked)).json()["embeddings"] == found


async def test_tei_embeds(gateway: Running, http: httpx.AsyncClient) -> None:
    [result] = (await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["a cat"]))).results
    [row] = (await http.post("/embed", json={"inputs": "a cat"})).json()
    assert np.array(row, "<f4").tobytes() == result.embedding.data
    too_long = {"inputs": "x" * 600, "truncate": False}
    assert (await http.post("/embed", json=too_long)).status_code == 400
    assert (await http.post("/embed", json={**too_long, "truncate": True})).status_code == 200
    info = (await http.get("/info")).json()
    assert (info["model_id"], info["max_input_length"], info["max_client_batch_size"]) == ("stand-in", 512, 2048)
