"""A part of a collection is gone from Redis: searches and reads say so, and the next upsert mends it."""

from itertools import chain, combinations

import grpc
import pytest

from tests.support.collections import CREATED, UNCHANGED, UPDATED, create, get, read, search
from tests.support.gateway import Running, running
from tests.support.redis import RedisProcess
from winnow.retrieval.v1 import retrieval_pb2 as pb

IDS = [str(number) for number in range(12)]
DOCUMENTS = [pb.Document(id=id_, text=f"text {id_}", metadata_json=f'{{"n": {id_}}}') for id_ in IDS]
SUBSETS = ["".join(parts) for parts in chain.from_iterable(combinations("cvth", size) for size in (1, 2, 3, 4))]
DATA_LOSS = grpc.StatusCode.DATA_LOSS.value[0]


async def fill(gateway: Running) -> None:
    await create(gateway, shards=2)
    assert {result.outcome for result in await gateway.upsert("docs", *DOCUMENTS)} == {CREATED}


async def whole(gateway: Running) -> bool:
    """Whether everything is there and nothing is missed."""
    found = await search(gateway, "docs", candidates=50, top_n=50)
    got = await read(gateway, *IDS)
    source = pb.CollectionSource(name="docs", filter=".n == 7")
    filtered = await gateway.retrieval.Search(pb.SearchRequest(query="text", collection=source))
    return (
        not found.degraded
        and {(hit.id, hit.text, hit.metadata_json) for hit in found.hits}
        == {(one.id, one.text, one.metadata_json) for one in DOCUMENTS}
        and [one.document for one in got] == DOCUMENTS
        and [hit.id for hit in filtered.hits] == ["7"]
        and (await get(gateway)).document_count == len(IDS)
    )


def reasons(found: pb.SearchResponse) -> list[str]:
    return [one.reason for one in found.degradations]


@pytest.mark.parametrize("how", ["gone", "string", "list"])
@pytest.mark.parametrize("parts", SUBSETS)
async def test_lost_keys_are_noticed_and_mended(redis8: RedisProcess, parts: str, how: str) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        assert await whole(gateway)
        computed = len(gateway.embed_worker.texts)
        with redis8.client() as client:
            for part in parts:
                [key, *_] = sorted(client.keys(f"winnow:i:*.0*:{part}"))
                client.delete(key)
                if how == "string":
                    client.set(key, "x")
                if how == "list":
                    client.rpush(key, "x")
        found = await search(gateway, "docs", candidates=50, top_n=50)
        assert reasons(found) == ["SHARD_INCOMPLETE"]
        for hit in found.hits:
            assert hit.text == f"text {hit.id}"
        for one, document in zip(await read(gateway, *IDS), DOCUMENTS, strict=True):
            assert one.document == document or one.error.code == DATA_LOSS
        if parts != "c":
            assert (await get(gateway)).document_count < len(IDS)
        results = await gateway.upsert("docs", *DOCUMENTS)
        assert {result.id for result in results} == set(IDS)
        assert all(result.outcome in {CREATED, UPDATED, UNCHANGED} for result in results)
        assert await whole(gateway)
        assert gateway.embed_worker.texts[computed:] in ([], ["text"])  # all vectors were cached
        assert {result.outcome for result in await gateway.upsert("docs", *DOCUMENTS)} == {UNCHANGED}


@pytest.mark.parametrize("part", ["v", "t", "h"])
async def test_a_lost_part_of_one_document_is_noticed_and_mended(redis8: RedisProcess, part: str) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        with redis8.client() as client:
            for key in client.keys(f"winnow:i:*:{part}"):
                client.execute_command("VREM" if part == "v" else "HDEL", key, "3")
        assert reasons(await search(gateway, "docs")) == ["SHARD_INCOMPLETE"]
        [got] = await read(gateway, "3")
        assert got.error.code == (DATA_LOSS if part == "t" else 0)
        if part == "t":
            assert "Upsert it again" in got.error.message
        outcomes = {result.id: result.outcome for result in await gateway.upsert("docs", *DOCUMENTS)}
        assert outcomes.pop("3") == (CREATED if part == "h" else UPDATED)
        assert set(outcomes.values()) == {UNCHANGED}
        assert await whole(gateway)


@pytest.mark.parametrize(
    "value", [b"", b"an old text", b"\xff\x01", b"\xff\x01\xff\xff\xff\xffx", b"\xff\x02\0\0\0\0x"]
)
async def test_a_foreign_value_is_never_misread(redis8: RedisProcess, value: bytes) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        with redis8.client() as client:
            for key in client.keys("winnow:i:*:t"):
                if client.hexists(key, "3"):
                    client.hset(key, "3", value)
        found = await search(gateway, "docs", candidates=50, top_n=50)
        assert reasons(found) == ["SHARD_INCOMPLETE"]
        assert {hit.id for hit in found.hits} == set(IDS) - {"3"}
        assert [one.error.code for one in await read(gateway, "3", "4")] == [DATA_LOSS, 0]
        assert {result.id: result.outcome for result in await gateway.upsert("docs", *DOCUMENTS)}["3"] == UPDATED
        assert await whole(gateway)


@pytest.mark.parametrize("value", [b"", b"x", b"\x01\x00" + bytes(32), b"\x03" + bytes(46)])
async def test_a_foreign_record_is_written_again(redis8: RedisProcess, value: bytes) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        with redis8.client() as client:
            for key in client.keys("winnow:i:*:h"):
                if client.hexists(key, "3"):
                    client.hset(key, "3", value)
        outcomes = {result.id: result.outcome for result in await gateway.upsert("docs", *DOCUMENTS)}
        assert outcomes.pop("3") in {CREATED, UPDATED}
        assert set(outcomes.values()) == {UNCHANGED}
        assert await whole(gateway)


@pytest.mark.parametrize("parts", SUBSETS)
async def test_lost_documents_can_be_deleted(redis8: RedisProcess, parts: str) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        with redis8.client() as client:
            client.delete(*chain.from_iterable(client.keys(f"winnow:i:*:{part}") for part in parts))
        request = pb.DeleteDocumentsRequest(collection="docs", ids=IDS)
        await gateway.retrieval.DeleteDocuments(request)
        found = await search(gateway, "docs")
        assert not found.hits
        assert not found.degraded
        assert (await get(gateway)).document_count == 0
        assert {result.outcome for result in await gateway.upsert("docs", *DOCUMENTS)} == {CREATED}
        assert await whole(gateway)


async def test_what_was_never_there_is_not_lost(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        [got] = await read(gateway, "nothing")
        assert got.error.code == grpc.StatusCode.NOT_FOUND.value[0]
        request = pb.DeleteDocumentsRequest(collection="docs", ids=["nothing"])
        assert (await gateway.retrieval.DeleteDocuments(request)).deleted == 0
        assert await whole(gateway)


async def test_a_collection_of_the_layout_before_is_written_again(redis8: RedisProcess) -> None:
    """Marker a string, texts and metadata apart, shorter records."""
    async with running(redis8.url) as gateway:
        await fill(gateway)
        with redis8.client() as client:
            for key in client.keys("winnow:i:*:c"):
                client.delete(key)
                client.set(key, "{}")
            for key in client.keys("winnow:i:*:t"):
                for id_ in client.hkeys(key):
                    client.hset(key, id_, b"text " + id_)
            for key in client.keys("winnow:i:*:h"):
                for id_ in client.hkeys(key):
                    client.hset(key, id_, b"\x01\x00" + bytes(32))
        assert reasons(await search(gateway, "docs")) == ["SHARD_INCOMPLETE"]
        assert {result.outcome for result in await gateway.upsert("docs", *DOCUMENTS)} == {UPDATED}
        assert await whole(gateway)
