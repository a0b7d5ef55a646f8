"""Searches, collections and documents over HTTP, as the JSON of the protos."""

import asyncio
import json

from google.protobuf import json_format

from tests.support.gateway import running
from tests.support.http import client
from tests.support.redis import RedisProcess
from tests.support.waiting import until
from winnow.retrieval.v1 import retrieval_pb2 as pb

INLINE = {"query": "red cat", "documents": {"documents": [{"text": "a dog"}, {"id": "b", "text": "the red cat"}]}}
NDJSON = {"content-type": "application/x-ndjson"}


async def test_a_search_is_that_of_grpc() -> None:
    async with running(http_listen="127.0.0.1:0") as gateway, client(gateway) as http:
        answer = await http.post("/v1/search", json={**INLINE, "topN": 1})
        assert answer.status_code == 200, answer.text
        expected = await gateway.retrieval.Search(json_format.ParseDict({**INLINE, "topN": 1}, pb.SearchRequest()))
        found = json_format.Parse(answer.text, pb.SearchResponse())
        assert list(found.hits) == list(expected.hits)
        body = answer.json()
        assert body["hits"][0]["id"] == "b"
        assert body["degraded"] is False  # fields of no presence are written, so that a page need not know defaults


async def test_errors_are_the_status() -> None:
    async with running(http_listen="127.0.0.1:0") as gateway, client(gateway) as http:
        for body, code, says in (
            ({"query": ""}, 400, "query: is empty"),
            ({"query": "x", "nope": 1}, 400, "nope"),
            ([], 400, "SearchRequest"),
            ({"query": "x", "collection": {"name": "docs"}}, 400, "GATEWAY_REDIS_URL"),
        ):
            answer = await http.post("/v1/search", json=body)
            assert answer.status_code == code
            error = answer.json()["error"]
            assert says in error["message"]
            assert any(detail["@type"].endswith("ErrorInfo") for detail in error["details"])
        answer = await http.get("/v1/nothing")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, 404)
        answer = await http.get("/v1/search")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_life_of_a_collection(redis8: RedisProcess) -> None:
    async with running(redis8.url, http_listen="127.0.0.1:0") as gateway, client(gateway) as http:
        made = (await http.post("/v1/collections", json={"name": "docs", "dimensions": 64})).json()["collection"]
        assert (made["name"], made["dimensions"], made["quantization"]) == ("docs", 64, "QUANTIZATION_INT8")
        assert (await http.post("/v1/collections", json={"name": "docs"})).status_code == 409
        lines = [json.dumps({"id": f"{n}", "text": f"text {n}", "metadataJson": '{"n":1}'}) for n in range(150)]
        answer = await http.post("/v1/collections/docs/documents", content="\n".join([*lines, ""]), headers=NDJSON)
        assert answer.status_code == 200, answer.text
        results = [json.loads(line) for line in answer.text.splitlines()]
        assert {result["id"] for result in results} == {f"{n}" for n in range(150)}
        assert {result["outcome"] for result in results} == {"UPSERT_OUTCOME_CREATED"}
        found = (await http.get("/v1/collections/docs/documents", params={"ids": ["3", "none"]})).json()["results"]
        assert found[0]["document"] == {"id": "3", "text": "text 3", "metadataJson": '{"n":1}'}
        assert "error" in found[1]
        assert (await http.put("/v1/aliases/all", json={"collection": "docs"})).status_code == 200
        body = (await http.post("/v1/search", json={"query": "text 7", "collection": {"name": "all"}})).json()
        assert body["hits"][0]["id"] == "7"
        listed = (await http.get("/v1/collections", params={"page_size": 1})).json()
        assert [each["aliases"] for each in listed["collections"]] == [["all"]]
        assert listed["collections"][0]["documentCount"] == "150"
        deleted = await http.delete("/v1/collections/docs/documents", params={"ids": ["3", "none"]})
        assert deleted.json() == {"deleted": 1}
        assert (await http.delete("/v1/aliases/all")).status_code == 200
        assert (await http.delete("/v1/collections/docs")).status_code == 200
        assert (await http.get("/v1/collections/docs")).status_code == 404


async def test_an_upsert_that_fails_says_so(redis8: RedisProcess) -> None:
    async with running(redis8.url, http_listen="127.0.0.1:0") as gateway, client(gateway) as http:
        path = "/v1/collections/docs/documents"
        assert (await http.post(path, content="", headers=NDJSON)).status_code == 404
        await http.post("/v1/collections", json={"name": "docs"})
        assert (await http.post(path, content="", headers=NDJSON)).text == ""
        assert (await http.post(path, content='{"id": 3}\n', headers=NDJSON)).status_code == 400
        answer = await http.post(path, content='{"id": "1", "text": " "}\n{"id": "2", "text": "b"}', headers=NDJSON)
        by_id = {line["id"]: line for line in map(json.loads, answer.text.splitlines())}
        assert "text" in by_id["1"]["error"]["message"]
        assert by_id["2"]["outcome"] == "UPSERT_OUTCOME_CREATED"
        many = [json.dumps({"id": f"{n}", "text": f"text {n}"}) for n in range(64)]
        answer = await http.post(path, content="\n".join([*many, "{"]), headers=NDJSON)
        assert answer.status_code == 400
        assert "error" in json.loads(answer.text.splitlines()[-1])


async def test_a_client_that_leaves_an_upsert_ends_it(redis8: RedisProcess) -> None:
    async with running(redis8.url, http_listen="127.0.0.1:0") as gateway, client(gateway) as http:
        await http.post("/v1/collections", json={"name": "docs"})
        gateway.embed_worker.gate = asyncio.Event()
        gateway.embed_worker.waiting.clear()
        lines = "\n".join(json.dumps({"id": f"{n}", "text": f"text {n}"}) for n in range(65))
        sending = asyncio.create_task(http.post("/v1/collections/docs/documents", content=lines, headers=NDJSON))
        await gateway.embed_worker.waiting.wait()
        assert gateway.served.lifecycle.calls == 1
        sending.cancel()
        await until(lambda: gateway.served.lifecycle.calls == 0)
