"""Documents of a collection over a real Redis: upserts, deletes, and what fails alone."""

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.support.collections import CREATED, UNCHANGED, UPDATED, create, get, read, search
from tests.support.gateway import running
from tests.support.redis import RedisProcess
from tests.support.serving import failure, rich_status
from winnow.retrieval.v1 import retrieval_pb2 as pb


async def test_upserts_are_idempotent(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await create(gateway, shards=2)
        documents = [pb.Document(id=f"d{n}", text=f"text {n}", metadata_json='{"v": 1}') for n in range(30)]
        first = await gateway.upsert("docs", *documents)
        assert sorted(result.id for result in first) == sorted(document.id for document in documents)
        assert {result.outcome for result in first} == {CREATED}
        computed = len(gateway.embed_worker.texts)
        assert {result.outcome for result in await gateway.upsert("docs", *documents)} == {UNCHANGED}
        changed = [
            pb.Document(id="d0", text="text 0", metadata_json='{"v": 2}'),
            pb.Document(id="d1", text="another text", metadata_json='{"v": 1}'),
            pb.Document(id="d2", text="text 2"),
            documents[3],
            pb.Document(id="new", text="text new"),
        ]
        outcomes = {result.id: result.outcome for result in await gateway.upsert("docs", *changed)}
        assert outcomes == {"d0": UPDATED, "d1": UPDATED, "d2": UPDATED, "d3": UNCHANGED, "new": CREATED}
        assert gateway.embed_worker.texts[computed:] == ["another text", "text new"]  # nothing else cost model time
        got = await read(gateway, "d0", "d1", "d2", "d3")
        assert [(one.document.text, one.document.metadata_json) for one in got] == [
            ("text 0", '{"v": 2}'), ("another text", '{"v": 1}'), ("text 2", ""), ("text 3", '{"v": 1}'),
        ]  # fmt: skip
        source = pb.CollectionSource(name="docs", filter=".v == 2")
        found = await gateway.retrieval.Search(pb.SearchRequest(query="text", collection=source))
        assert [hit.id for hit in found.hits] == ["d0"]
        assert (await get(gateway)).document_count == 31


async def test_an_upsert_survives_the_gateway_and_is_resumed(redis8: RedisProcess) -> None:
    documents = [pb.Document(id=f"d{n}", text=f"text {n}") for n in range(200)]
    acknowledged = []
    async with running(redis8.url, stream_window_tokens=200) as gateway:
        await create(gateway, shards=3)

        async def requests() -> AsyncIterator[pb.UpsertDocumentsRequest]:
            for start in range(0, 200, 10):
                yield pb.UpsertDocumentsRequest(
                    collection="" if start else "docs", documents=documents[start : start + 10]
                )

        call = gateway.retrieval.UpsertDocuments(requests())
        async for response in call:
            acknowledged += [result.id for result in response.results if not result.HasField("error")]
            if len(acknowledged) >= 50:
                break
        call.cancel()
    assert 50 <= len(acknowledged) < 200
    async with running(redis8.url) as gateway:  # another gateway
        got = await read(gateway, *acknowledged)
        assert all(one.WhichOneof("outcome") == "document" for one in got)
        results = {result.id: result.outcome for result in await gateway.upsert("docs", *documents)}
        assert set(results) == {document.id for document in documents}
        assert all(results[id_] == UNCHANGED for id_ in acknowledged)
        assert (await get(gateway)).document_count == 200


async def test_the_same_id_twice_the_later_one_wins(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await create(gateway)
        for round_ in range(10):
            results = await gateway.upsert(
                "docs", *(pb.Document(id="x", text=f"round {round_} text {n}") for n in range(5))
            )
            assert len(results) == 5
            assert not any(result.HasField("error") for result in results)
            [got] = await read(gateway, "x")
            assert got.document.text == f"round {round_} text 4"
        assert (await search(gateway, "docs")).hits[0].text == "round 9 text 4"


async def test_the_later_one_wins_even_where_it_is_ready_first(redis8: RedisProcess) -> None:
    """The first text waits in the worker; the second is in the cache already."""
    async with running(redis8.url) as gateway:
        await create(gateway)
        await gateway.upsert("docs", pb.Document(id="other", text="cached text"))
        gate = gateway.embed_worker.gate = asyncio.Event()
        gateway.embed_worker.waiting.clear()

        async def requests() -> AsyncIterator[pb.UpsertDocumentsRequest]:
            yield pb.UpsertDocumentsRequest(collection="docs", documents=[pb.Document(id="x", text="slow text")])
            yield pb.UpsertDocumentsRequest(documents=[pb.Document(id="x", text="cached text")])
            await gateway.embed_worker.waiting.wait()
            gate.set()

        results = [result async for response in gateway.retrieval.UpsertDocuments(requests())
                   for result in response.results]  # fmt: skip
        assert [result.outcome for result in results] == [CREATED, UPDATED]
        [got] = await read(gateway, "x")
        assert got.document.text == "cached text"


async def test_deletes_take_vector_text_and_attributes_along(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await create(gateway, shards=3)
        await gateway.upsert(
            "docs", *(pb.Document(id=str(n), text=f"text {n}", metadata_json='{"a": 1}') for n in range(10))
        )
        answer = await gateway.retrieval.DeleteDocuments(
            pb.DeleteDocumentsRequest(collection="docs", ids=["1", "2", "2", "nothing"])
        )
        assert answer.deleted == 2
        assert {hit.id for hit in (await search(gateway, "docs")).hits} == set("03456789")
        got = await read(gateway, "1", "0", "1")
        assert [one.WhichOneof("outcome") for one in got] == ["error", "document", "error"]
        assert got[0].error.code == 5
        rest = [str(n) for n in range(10)]
        await gateway.retrieval.DeleteDocuments(pb.DeleteDocumentsRequest(collection="docs", ids=rest))
        assert (await get(gateway)).document_count == 0
        with redis8.client() as client:
            assert not client.keys("winnow:i:*:[vth]")
        assert [r.outcome for r in await gateway.upsert("docs", pb.Document(id="1", text="text 1"))] == [CREATED]


IDS = ["a:b", "{tag}", "}{", "line\nbreak", "nul\x00byte", "*", " ", "é", "🜁", "x" * 512, "winnow:i:", "0", "-1", "NaN"]


async def test_any_id_is_only_an_id(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await create(gateway, shards=4)
        results = await gateway.upsert("docs", *(pb.Document(id=id_, text=f"text {n}") for n, id_ in enumerate(IDS)))
        assert {result.id: result.outcome for result in results} == dict.fromkeys(IDS, CREATED)
        assert [one.document.id for one in await read(gateway, *IDS)] == IDS
        hits = (await search(gateway, "docs", candidates=50, top_n=50)).hits
        assert {hit.id: hit.text for hit in hits} == {id_: f"text {n}" for n, id_ in enumerate(IDS)}
        answer = await gateway.retrieval.DeleteDocuments(pb.DeleteDocumentsRequest(collection="docs", ids=IDS))
        assert answer.deleted == len(IDS)


@pytest.mark.parametrize(
    ("field", "document"),
    [
        ("id", pb.Document(id="", text="x")),
        ("id", pb.Document(id="x" * 513, text="x")),
        ("text", pb.Document(id="bad", text="")),
        ("text", pb.Document(id="bad", text=" \n")),
        ("text", pb.Document(id="bad", text="x" * ((4 << 20) + 1))),
        ("metadata_json", pb.Document(id="bad", text="x", metadata_json="{")),
        ("metadata_json", pb.Document(id="bad", text="x", metadata_json="[1]")),
        ("metadata_json", pb.Document(id="bad", text="x", metadata_json='{"a": NaN}')),
        ("metadata_json", pb.Document(id="bad", text="x", metadata_json=json.dumps({"a": "x" * 65536}))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_document_fails_alone_and_nothing_of_it_is_written(
    redis8: RedisProcess, field: str, document: pb.Document
) -> None:
    async with running(redis8.url) as gateway:
        await create(gateway)
        results = await gateway.upsert("docs", pb.Document(id="a", text="before"), document,
                                       pb.Document(id="z", text="after"))  # fmt: skip
        by_id = {result.id: result for result in results}
        assert len(by_id) == 3
        assert by_id["a"].outcome == by_id["z"].outcome == CREATED
        bad = by_id[document.id]
        assert bad.error.code == 3
        assert f"documents[1].{field}" in bad.error.message
        assert (await get(gateway)).document_count == 2
        with redis8.client() as client:
            [key] = client.keys("winnow:i:*:v")
            assert client.execute_command("VCARD", key) == 2


async def test_a_text_over_the_models_limit_is_cut_and_says_so(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await create(gateway)
        document = pb.Document(id="long", text="word " * 200)
        for outcome in (CREATED, UNCHANGED):
            [result] = await gateway.upsert("docs", document)
            assert (result.outcome, result.truncated) == (outcome, True)
        [result] = await gateway.upsert("docs", pb.Document(id="long", text="word " * 200, metadata_json='{"a":1}'))
        assert (result.outcome, result.truncated) == (UPDATED, True)
        assert (await read(gateway, "long"))[0].document.text == "word " * 200  # the text itself is whole


async def test_a_document_that_the_model_cannot_do_fails_alone(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await create(gateway)
        results = await gateway.upsert("docs", pb.Document(id="a", text="fine"), pb.Document(id="b", text="NAN"))
        assert {result.id: result.error.code for result in results} == {"a": 0, "b": 13}
        assert (await get(gateway)).document_count == 1


async def test_bad_streams(redis8: RedisProcess) -> None:
    async with running(redis8.url, max_items=3) as gateway:
        await create(gateway)

        async def stream(*requests: pb.UpsertDocumentsRequest) -> AsyncIterator[pb.UpsertDocumentsRequest]:
            for request in requests:
                yield request

        one = pb.Document(id="a", text="a")
        for requests, field in (
            ([pb.UpsertDocumentsRequest(documents=[one])], "collection"),
            (
                [pb.UpsertDocumentsRequest(collection="docs"), pb.UpsertDocumentsRequest(collection="docs")],
                "collection",
            ),
            ([pb.UpsertDocumentsRequest(collection="docs", documents=[one] * 4)], "documents"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                async for _ in gateway.retrieval.UpsertDocuments(stream(*requests)):
                    pass
            assert rich_status(failed.value).fields == [field]
        assert [r async for r in gateway.retrieval.UpsertDocuments(stream())] == []
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.upsert("nothing", one)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_what_came_before_a_bad_message_is_stored_and_acknowledged(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await create(gateway)

        async def requests() -> AsyncIterator[pb.UpsertDocumentsRequest]:
            yield pb.UpsertDocumentsRequest(collection="docs", documents=[pb.Document(id="a", text="a")])
            yield pb.UpsertDocumentsRequest(collection="docs", documents=[pb.Document(id="b", text="b")])

        results: list[pb.UpsertResult] = []

        async def listen() -> None:
            async for response in gateway.retrieval.UpsertDocuments(requests()):
                results.extend(response.results)

        await failure(listen())
        assert [(result.id, result.outcome) for result in results] == [("a", CREATED)]
        assert (await get(gateway)).document_count == 1


async def test_a_collection_removed_during_an_upsert(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await create(gateway)
        gate = gateway.embed_worker.gate = asyncio.Event()
        gateway.embed_worker.waiting.clear()
        upsert = asyncio.create_task(gateway.upsert("docs", pb.Document(id="a", text="a")))
        await gateway.embed_worker.waiting.wait()
        await gateway.retrieval.DeleteCollection(pb.DeleteCollectionRequest(name="docs"))
        gate.set()
        [result] = await upsert
        assert result.error.code == 5
        with redis8.client() as client:  # nothing was left behind
            assert not client.keys("winnow:i:*:[cvth]")
