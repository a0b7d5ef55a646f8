"""Collections, aliases and documents over a real Redis."""

import asyncio
import json

import grpc
import pytest

from tests.support.gateway import NOWHERE, running
from tests.support.redis import redis_server, valkey_binary
from tests.support.serving import told
from tests.support.waiting import until
from winnow.retrieval.v1 import retrieval_pb2 as pb

CREATED, UPDATED, UNCHANGED = 1, 2, 3


async def create(gateway, name="docs", **options) -> pb.Collection:
    return (await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name=name, **options))).collection


async def get(gateway, name="docs") -> pb.Collection:
    return (await gateway.retrieval.GetCollection(pb.GetCollectionRequest(name=name))).collection


async def read(gateway, *ids, collection="docs") -> list[pb.GetDocumentResult]:
    return list((await gateway.retrieval.GetDocuments(
        pb.GetDocumentsRequest(collection=collection, ids=ids))).results)  # fmt: skip


async def failure(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value


def search(gateway, name, query="text", **options):
    source = pb.CollectionSource(name=name)
    return gateway.retrieval.Search(pb.SearchRequest(query=query, collection=source, **options))


async def test_life_of_a_collection(redis8):
    async with running(redis8.url) as gateway:
        made = await create(gateway, dimensions=64, quantization=pb.QUANTIZATION_NONE, shards=3)
        assert (made.name, made.dimensions, made.quantization, made.shards) == ("docs", 64, 2, 3)
        assert made.model.fingerprint == "embed-1"
        assert made.create_time.seconds > 0
        assert await get(gateway) == made
        await gateway.upsert("docs", *(pb.Document(id=str(n), text=f"text {n}") for n in range(20)))
        assert (await get(gateway)).document_count == 20
        error = await failure(create(gateway))
        assert error.code() is grpc.StatusCode.ALREADY_EXISTS
        await gateway.retrieval.DeleteCollection(pb.DeleteCollectionRequest(name="docs"))
        assert (await failure(get(gateway))).code() is grpc.StatusCode.NOT_FOUND
        with redis8.client() as client:
            assert not [key for key in client.keys("winnow:i:*") if b"{catalogue}" not in key]
            assert not client.hgetall("winnow:i:{catalogue}:trash")
        assert (await create(gateway)).document_count == 0  # a new one under the old name is empty
        assert (await get(gateway)).document_count == 0
        assert (await failure(gateway.retrieval.DeleteCollection(
            pb.DeleteCollectionRequest(name="nothing")))).code() is grpc.StatusCode.NOT_FOUND  # fmt: skip


async def test_defaults_of_a_collection(redis8):
    async with running(redis8.url) as gateway:
        made = await create(gateway)
        assert (made.dimensions, made.quantization, made.shards) == (96, pb.QUANTIZATION_INT8, 1)


async def test_pages(redis8):
    async with running(redis8.url) as gateway:
        wanted = sorted(f"c{n}" for n in range(7))
        for name in reversed(wanted):
            await create(gateway, name)
        names, token = [], ""
        for size in (3, 3, 1):
            page = await gateway.retrieval.ListCollections(pb.ListCollectionsRequest(page_size=3, page_token=token))
            assert len(page.collections) == size
            names += [collection.name for collection in page.collections]
            token = page.next_page_token
            assert bool(token) == (size == 3)
        assert names == wanted
        assert len((await gateway.retrieval.ListCollections(pb.ListCollectionsRequest())).collections) == 7
        for bad, field in ((pb.ListCollectionsRequest(page_size=1001), "page_size"),
                           (pb.ListCollectionsRequest(page_token="no token!"), "page_token")):  # fmt: skip
            assert told(await failure(gateway.retrieval.ListCollections(bad))).fields == [field]


async def test_aliases(redis8):
    async with running(redis8.url) as gateway:
        stub = gateway.retrieval
        for name in ("blue", "green"):
            await create(gateway, name)
            await gateway.upsert(name, pb.Document(id="x", text=f"text of {name}"))
        await stub.SetAlias(pb.SetAliasRequest(alias="live", collection="blue"))
        await stub.SetAlias(pb.SetAliasRequest(alias="also", collection="blue"))
        assert list((await get(gateway, "live")).aliases) == ["also", "live"]
        assert (await search(gateway, "live")).hits[0].text == "text of blue"
        await stub.SetAlias(pb.SetAliasRequest(alias="live", collection="green"))
        assert (await search(gateway, "live")).hits[0].text == "text of green"
        assert list((await get(gateway, "blue")).aliases) == ["also"]
        [result] = await gateway.upsert("live", pb.Document(id="y", text="by alias"))
        assert result.outcome == CREATED
        assert (await get(gateway, "green")).document_count == 2
        for wrong, code in (
            (stub.SetAlias(pb.SetAliasRequest(alias="blue", collection="green")), grpc.StatusCode.ALREADY_EXISTS),
            (stub.SetAlias(pb.SetAliasRequest(alias="new", collection="nothing")), grpc.StatusCode.NOT_FOUND),
            (stub.SetAlias(pb.SetAliasRequest(alias="new", collection="live")), grpc.StatusCode.NOT_FOUND),
            (stub.DeleteAlias(pb.DeleteAliasRequest(alias="nothing")), grpc.StatusCode.NOT_FOUND),
            (stub.DeleteCollection(pb.DeleteCollectionRequest(name="live")), grpc.StatusCode.NOT_FOUND),
            (stub.CreateCollection(pb.CreateCollectionRequest(name="live")), grpc.StatusCode.ALREADY_EXISTS),
        ):
            assert (await failure(wrong)).code() is code
        await stub.DeleteCollection(pb.DeleteCollectionRequest(name="green"))  # takes its alias along
        assert (await failure(get(gateway, "live"))).code() is grpc.StatusCode.NOT_FOUND
        await stub.DeleteAlias(pb.DeleteAliasRequest(alias="also"))
        assert list((await get(gateway, "blue")).aliases) == []


async def test_an_alias_switch_leaves_no_gap(redis8):
    """Searches during a switch see the old collection or the new one, and after it only the new one."""
    async with running(redis8.url) as gateway:
        for name in ("blue", "green"):
            await create(gateway, name)
            await gateway.upsert(name, pb.Document(id="x", text=f"text of {name}"))
        await gateway.retrieval.SetAlias(pb.SetAliasRequest(alias="live", collection="blue"))
        seen = []

        async def reader():
            while not seen or "green" not in seen[-1]:
                [hit] = (await search(gateway, "live")).hits
                seen.append(hit.text)

        async def writer():
            await until(lambda: len(seen) >= 20)
            await gateway.retrieval.SetAlias(pb.SetAliasRequest(alias="live", collection="green"))

        await asyncio.gather(*(reader() for _ in range(4)), writer())
        assert set(seen) == {"text of blue", "text of green"}
        assert (await search(gateway, "live")).hits[0].text == "text of green"


async def test_upserts_are_idempotent(redis8):
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


async def test_an_upsert_survives_the_gateway_and_is_resumed(redis8):
    documents = [pb.Document(id=f"d{n}", text=f"text {n}") for n in range(200)]
    acknowledged = []
    async with running(redis8.url, stream_window_tokens=200) as gateway:
        await create(gateway, shards=3)

        async def requests():
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


async def test_the_same_id_twice_the_later_one_wins(redis8):
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


async def test_the_later_one_wins_even_where_it_is_ready_first(redis8):
    """The first text waits in the worker; the second is in the cache already."""
    async with running(redis8.url) as gateway:
        await create(gateway)
        await gateway.upsert("docs", pb.Document(id="other", text="cached text"))
        gateway.embed_worker.gate = asyncio.Event()
        gateway.embed_worker.waiting.clear()

        async def requests():
            yield pb.UpsertDocumentsRequest(collection="docs", documents=[pb.Document(id="x", text="slow text")])
            yield pb.UpsertDocumentsRequest(documents=[pb.Document(id="x", text="cached text")])
            await gateway.embed_worker.waiting.wait()
            gateway.embed_worker.gate.set()

        results = [result async for response in gateway.retrieval.UpsertDocuments(requests())
                   for result in response.results]  # fmt: skip
        assert [result.outcome for result in results] == [CREATED, UPDATED]
        [got] = await read(gateway, "x")
        assert got.document.text == "cached text"


async def test_deletes_take_vector_text_and_attributes_along(redis8):
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


async def test_any_id_is_only_an_id(redis8):
    async with running(redis8.url) as gateway:
        await create(gateway, shards=4)
        results = await gateway.upsert("docs", *(pb.Document(id=id_, text=f"text {n}") for n, id_ in enumerate(IDS)))
        assert {result.id: result.outcome for result in results} == dict.fromkeys(IDS, CREATED)
        assert [one.document.id for one in await read(gateway, *IDS)] == IDS
        hits = (await search(gateway, "docs", candidates=50, top_n=50)).hits
        assert {hit.id: hit.text for hit in hits} == {id_: f"text {n}" for n, id_ in enumerate(IDS)}
        answer = await gateway.retrieval.DeleteDocuments(pb.DeleteDocumentsRequest(collection="docs", ids=IDS))
        assert answer.deleted == len(IDS)


BAD_NAMES = ["", "A", "-a", "_a", "a b", "a/b", "../x", "a:b", "{a}", "a\n", "x" * 65, "é", "*", "a}:v"]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_bad_names_are_refused_everywhere(redis8, name):
    async with running(redis8.url) as gateway:
        stub = gateway.retrieval
        await create(gateway, "good")
        for call, field in (
            (stub.CreateCollection(pb.CreateCollectionRequest(name=name)), "name"),
            (stub.GetCollection(pb.GetCollectionRequest(name=name)), "name"),
            (stub.DeleteCollection(pb.DeleteCollectionRequest(name=name)), "name"),
            (stub.SetAlias(pb.SetAliasRequest(alias=name, collection="good")), "alias"),
            (stub.SetAlias(pb.SetAliasRequest(alias="good-2", collection=name)), "collection"),
            (stub.DeleteAlias(pb.DeleteAliasRequest(alias=name)), "alias"),
            (stub.GetDocuments(pb.GetDocumentsRequest(collection=name, ids=["a"])), "collection"),
            (stub.DeleteDocuments(pb.DeleteDocumentsRequest(collection=name, ids=["a"])), "collection"),
            (search(gateway, name), "collection.name"),
            (gateway.upsert(name, pb.Document(id="a", text="a")), "collection"),
        ):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert told(error).fields == [field]
        with redis8.client() as client:
            assert client.hkeys("winnow:i:{catalogue}:collections") == [b"good"]


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
async def test_a_bad_document_fails_alone_and_nothing_of_it_is_written(redis8, field, document):
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


async def test_a_text_over_the_models_limit_is_cut_and_says_so(redis8):
    async with running(redis8.url) as gateway:
        await create(gateway)
        document = pb.Document(id="long", text="word " * 200)
        for outcome in (CREATED, UNCHANGED):
            [result] = await gateway.upsert("docs", document)
            assert (result.outcome, result.truncated) == (outcome, True)
        [result] = await gateway.upsert("docs", pb.Document(id="long", text="word " * 200, metadata_json='{"a":1}'))
        assert (result.outcome, result.truncated) == (UPDATED, True)
        assert (await read(gateway, "long"))[0].document.text == "word " * 200  # the text itself is whole


async def test_a_document_that_the_model_cannot_do_fails_alone(redis8):
    async with running(redis8.url) as gateway:
        await create(gateway)
        results = await gateway.upsert("docs", pb.Document(id="a", text="fine"), pb.Document(id="b", text="NAN"))
        assert {result.id: result.error.code for result in results} == {"a": 0, "b": 13}
        assert (await get(gateway)).document_count == 1


async def test_bad_streams(redis8):
    async with running(redis8.url, max_items=3) as gateway:
        await create(gateway)

        async def stream(*requests):
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
            assert told(failed.value).fields == [field]
        assert [r async for r in gateway.retrieval.UpsertDocuments(stream())] == []
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.upsert("nothing", one)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_what_came_before_a_bad_message_is_stored_and_acknowledged(redis8):
    async with running(redis8.url) as gateway:
        await create(gateway)

        async def requests():
            yield pb.UpsertDocumentsRequest(collection="docs", documents=[pb.Document(id="a", text="a")])
            yield pb.UpsertDocumentsRequest(collection="docs", documents=[pb.Document(id="b", text="b")])

        results = []

        async def listen():
            async for response in gateway.retrieval.UpsertDocuments(requests()):
                results.extend(response.results)

        await failure(listen())
        assert [(result.id, result.outcome) for result in results] == [("a", CREATED)]
        assert (await get(gateway)).document_count == 1


async def test_a_collection_removed_during_an_upsert(redis8):
    async with running(redis8.url) as gateway:
        await create(gateway)
        gateway.embed_worker.gate = asyncio.Event()
        gateway.embed_worker.waiting.clear()
        upsert = asyncio.create_task(gateway.upsert("docs", pb.Document(id="a", text="a")))
        await gateway.embed_worker.waiting.wait()
        await gateway.retrieval.DeleteCollection(pb.DeleteCollectionRequest(name="docs"))
        gateway.embed_worker.gate.set()
        [result] = await upsert
        assert result.error.code == 5
        with redis8.client() as client:  # nothing was left behind
            assert not client.keys("winnow:i:*:[cvth]")


@pytest.mark.parametrize("bad", [0, 31, 97])
async def test_bad_dimensions(redis8, bad):
    async with running(redis8.url) as gateway:
        assert told(await failure(create(gateway, dimensions=bad))).fields == ["dimensions"]
        assert told(await failure(create(gateway, shards=257))).fields == ["shards"]
        assert told(await failure(create(gateway, shards=0))).fields == ["shards"]
        assert told(await failure(create(gateway, quantization=9))).fields == ["quantization"]


async def test_a_half_made_collection_is_cleaned_up(redis8):
    """A gateway died between making the shards and giving them a name."""
    async with running(redis8.url) as gateway:
        with redis8.client() as client:
            client.set("winnow:i:{dead.0}:c", "x")
            client.hset("winnow:i:{catalogue}:trash", "dead", json.dumps({"tags": ["dead.0"], "after": 1}))
            client.hset("winnow:i:{catalogue}:trash", "young", json.dumps({"tags": ["young.0"], "after": 2e10}))
        await create(gateway)
        with redis8.client() as client:
            assert not client.exists("winnow:i:{dead.0}:c")
            assert client.hkeys("winnow:i:{catalogue}:trash") == [b"young"]


@pytest.mark.parametrize("url", [None, "valkey", f"redis://{NOWHERE}"])
async def test_without_vector_sets_collections_say_what_to_do(url):
    with redis_server(binary=valkey_binary()) as valkey:
        async with running(valkey.url if url == "valkey" else url) as gateway:
            stub = gateway.retrieval
            for call in (
                create(gateway),
                get(gateway),
                search(gateway, "docs"),
                gateway.upsert("docs", pb.Document(id="a", text="a")),
                stub.ListCollections(pb.ListCollectionsRequest()),
                stub.SetAlias(pb.SetAliasRequest(alias="a", collection="b")),
                stub.DeleteAlias(pb.DeleteAliasRequest(alias="a")),
                stub.DeleteCollection(pb.DeleteCollectionRequest(name="a")),
                stub.GetDocuments(pb.GetDocumentsRequest(collection="a", ids=["a"])),
                stub.DeleteDocuments(pb.DeleteDocumentsRequest(collection="a", ids=["a"])),
            ):
                error = await failure(call)
                if url == f"redis://{NOWHERE}":
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                else:
                    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
                    assert told(error).reason in {"NO_INDEX", "NO_VECTOR_SETS"}
                    assert "Redis 8" in told(error).status.message
            documents = pb.InlineDocuments(documents=[pb.Document(text="a")])
            assert (await stub.Search(pb.SearchRequest(query="a", documents=documents))).hits


async def test_index_keys_never_expire_and_cache_keys_always_do(redis8):
    async with running(redis8.url) as gateway:
        await create(gateway)
        await gateway.upsert("docs", pb.Document(id="a", text="a"))
        await search(gateway, "docs")
        await gateway.gateway._remote.flush()
        with redis8.client() as client:
            for key in client.keys("*"):
                assert (client.ttl(key) == -1) == key.startswith(b"winnow:i:")
