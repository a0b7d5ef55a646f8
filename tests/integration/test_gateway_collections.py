"""Collections and aliases over a real Redis."""

import asyncio
import json

import grpc
import pytest

from tests.support.collections import CREATED, create, get, search
from tests.support.gateway import NOWHERE, flushed, running
from tests.support.redis import RedisProcess, redis_server, valkey_binary
from tests.support.serving import failure, rich_status
from tests.support.waiting import until
from winnow.retrieval.v1 import retrieval_pb2 as pb


async def test_life_of_a_collection(redis8: RedisProcess) -> None:
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


async def test_defaults_of_a_collection(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        made = await create(gateway)
        assert (made.dimensions, made.quantization, made.shards) == (96, pb.QUANTIZATION_INT8, 1)


async def test_pages(redis8: RedisProcess) -> None:
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
        # Not base64, not ASCII, not padded, not UTF-8 within.
        for token in ("no token!", "é", "\U0001f600", "\x00", "YQ", "=", "_w==", "gICA"):
            seen = rich_status(
                await failure(gateway.retrieval.ListCollections(pb.ListCollectionsRequest(page_token=token)))
            )
            assert (seen.code, seen.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])
        seen = rich_status(await failure(gateway.retrieval.ListCollections(pb.ListCollectionsRequest(page_size=1001))))
        assert seen.fields == ["page_size"]


async def test_aliases(redis8: RedisProcess) -> None:
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


async def test_an_alias_switch_leaves_no_gap(redis8: RedisProcess) -> None:
    """Searches during a switch see the old collection or the new one, and after it only the new one."""
    async with running(redis8.url) as gateway:
        for name in ("blue", "green"):
            await create(gateway, name)
            await gateway.upsert(name, pb.Document(id="x", text=f"text of {name}"))
        await gateway.retrieval.SetAlias(pb.SetAliasRequest(alias="live", collection="blue"))
        seen: list[str] = []

        async def reader() -> None:
            while not seen or "green" not in seen[-1]:
                [hit] = (await search(gateway, "live")).hits
                seen.append(hit.text)

        async def writer() -> None:
            await until(lambda: len(seen) >= 20)
            await gateway.retrieval.SetAlias(pb.SetAliasRequest(alias="live", collection="green"))

        await asyncio.gather(*(reader() for _ in range(4)), writer())
        assert set(seen) == {"text of blue", "text of green"}
        assert (await search(gateway, "live")).hits[0].text == "text of green"


BAD_NAMES = ["", "A", "-a", "_a", "a b", "a/b", "../x", "a:b", "{a}", "a\n", "x" * 65, "é", "*", "a}:v"]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_bad_names_are_refused_everywhere(redis8: RedisProcess, name: str) -> None:
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
            assert rich_status(error).fields == [field]
        with redis8.client() as client:
            assert client.hkeys("winnow:i:{catalogue}:collections") == [b"good"]


@pytest.mark.parametrize("bad", [0, 31, 97])
async def test_bad_dimensions(redis8: RedisProcess, bad: int) -> None:
    async with running(redis8.url) as gateway:
        assert rich_status(await failure(create(gateway, dimensions=bad))).fields == ["dimensions"]
        assert rich_status(await failure(create(gateway, shards=257))).fields == ["shards"]
        assert rich_status(await failure(create(gateway, shards=0))).fields == ["shards"]
        assert rich_status(await failure(create(gateway, quantization=9))).fields == ["quantization"]


async def test_a_half_made_collection_is_cleaned_up(redis8: RedisProcess) -> None:
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


async def test_a_collection_with_a_name_is_never_swept(redis8: RedisProcess) -> None:
    """The note of its creation came a second time, late."""
    async with running(redis8.url) as gateway:
        await create(gateway)
        await gateway.upsert("docs", pb.Document(id="x", text="text"))
        assert gateway.gateway._index is not None
        collection = await gateway.gateway._index.catalogue.resolve("docs")
        with redis8.client() as client:
            entry = json.dumps({"tags": collection.shards, "after": 1})
            client.hset("winnow:i:{catalogue}:trash", collection.uid, entry)
            await create(gateway, "other")
            assert not client.hgetall("winnow:i:{catalogue}:trash")
        assert len((await search(gateway, "docs")).hits) == 1


@pytest.mark.parametrize("url", [None, "valkey", f"redis://{NOWHERE}"])
async def test_without_vector_sets_collections_say_what_to_do(url: str | None) -> None:
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
                    assert rich_status(error).reason in {"NO_INDEX", "NO_VECTOR_SETS"}
                    assert "Redis 8" in rich_status(error).status.message
            documents = pb.InlineDocuments(documents=[pb.Document(text="a")])
            assert (await stub.Search(pb.SearchRequest(query="a", documents=documents))).hits


async def test_index_keys_never_expire_and_cache_keys_always_do(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await create(gateway)
        await gateway.upsert("docs", pb.Document(id="a", text="a"))
        await search(gateway, "docs")
        await flushed(gateway)
        with redis8.client() as client:
            for key in client.keys("*"):
                assert (client.ttl(key) == -1) == key.startswith(b"winnow:i:")


async def test_a_graph_keeps_the_links_it_was_made_with(redis8: RedisProcess) -> None:
    """Redis refuses a vector under another number of links than the first."""
    async with running(redis8.url) as gateway:
        await create(gateway, "now")
        await create(gateway, "once")  # by a gateway that did not name them
        with redis8.client() as client:
            catalogue = "winnow:i:{catalogue}:collections"
            described = json.loads(client.hget(catalogue, "once"))
            del described["links"]
            client.hset(catalogue, "once", json.dumps(described))
            for name, links in (("now", 32), ("once", 16)):
                assert [r.outcome for r in await gateway.upsert(name, pb.Document(id="x", text="text"))] == [CREATED]
                [tag] = json.loads(client.hget(catalogue, name))["tags"]
                info = client.execute_command("VINFO", f"winnow:i:{{{tag}}}:v")
                assert dict(zip(info[::2], info[1::2], strict=True))[b"hnsw-m"] == links
