"""Changes of the index whose reply is lost, that come late, or that meet another's: real processes, a proxy between."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest

from gateway.index import lua
from tests.support.collections import CREATED, UNCHANGED, UPDATED, create, get, read, search
from tests.support.gateway import Running, running
from tests.support.proxy import Caught, Proxy, proxy
from tests.support.redis import RedisProcess, redis_server
from tests.support.serving import failure
from winnow.retrieval.v1 import retrieval_pb2 as pb


def marker(script: str) -> bytes:
    """What a request with this script contains, and no other."""
    return script.strip()[-120:].encode()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with redis_server() as server:
        yield server


@asynccontextmanager
async def two_gateways(redis: RedisProcess) -> AsyncIterator[tuple[Running, Running, Proxy]]:
    """One behind a proxy, one that reaches Redis at once; Redis is empty."""
    with redis.client() as client:
        client.flushall()
    async with (
        proxy(redis.port) as between,
        running(f"redis://127.0.0.1:{between.port}", index_timeout_ms=5000) as far,
        running(redis.url, index_timeout_ms=5000) as near,
    ):
        yield far, near, between


def document(text: str, **metadata: str) -> pb.Document:
    return pb.Document(id="x", text=text, **metadata)


async def removed(gateway: Running, *ids: str) -> int:
    request = pb.DeleteDocumentsRequest(collection="docs", ids=ids)
    return (await gateway.retrieval.DeleteDocuments(request)).deleted


async def test_a_creation_whose_reply_is_lost_has_happened(redis: RedisProcess) -> None:
    async with two_gateways(redis) as (far, near, between):
        caught = between.lose_reply(marker(lua.CREATE))
        assert (await create(far, shards=2)).shards == 2
        assert caught.answered.is_set()
        assert [result.outcome for result in await near.upsert("docs", document("text"))] == [CREATED]
        found = await search(near, "docs")
        assert [hit.id for hit in found.hits] == ["x"]
        assert not found.degraded
        assert (await failure(create(near))).code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_removal_whose_reply_is_lost_has_happened(redis: RedisProcess) -> None:
    async with two_gateways(redis) as (far, near, between):
        await create(near)
        caught = between.lose_reply(marker(lua.REMOVE))
        await far.retrieval.DeleteCollection(pb.DeleteCollectionRequest(name="docs"))
        assert caught.answered.is_set()
        assert (await failure(get(near))).code() is grpc.StatusCode.NOT_FOUND


async def test_changes_of_aliases_whose_reply_is_lost_have_happened(redis: RedisProcess) -> None:
    async with two_gateways(redis) as (far, near, between):
        await create(near)
        caught = between.lose_reply(marker(lua.SET_ALIAS))
        await far.retrieval.SetAlias(pb.SetAliasRequest(alias="live", collection="docs"))
        assert caught.answered.is_set()
        assert list((await get(near)).aliases) == ["live"]
        caught = between.lose_reply(marker(lua.DELETE_ALIAS))
        await far.retrieval.DeleteAlias(pb.DeleteAliasRequest(alias="live"))
        assert caught.answered.is_set()
        assert list((await get(near)).aliases) == []


async def test_a_deletion_whose_reply_is_lost_counts(redis: RedisProcess) -> None:
    async with two_gateways(redis) as (far, near, between):
        await create(near)
        await near.upsert("docs", document("text"), pb.Document(id="y", text="another"))
        caught = between.lose_reply(marker(lua.DELETE))
        assert await removed(far, "x", "y", "nothing") == 2
        assert caught.answered.is_set()
        assert (await get(near)).document_count == 0


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (None, document("text"), CREATED),
        (document("text"), document("another text"), UPDATED),
        (document("text"), document("text", metadata_json='{"a": 1}'), UPDATED),
    ],
)
async def test_a_write_whose_reply_is_lost_says_what_it_did(
    redis: RedisProcess, before: pb.Document | None, after: pb.Document, outcome: int
) -> None:
    async with two_gateways(redis) as (far, near, between):
        await create(near)
        if before is not None:
            await near.upsert("docs", before)
        caught = between.lose_reply(marker(lua.WRITE))
        assert [result.outcome for result in await far.upsert("docs", after)] == [outcome]
        assert caught.answered.is_set()
        assert [result.outcome for result in await near.upsert("docs", after)] == [UNCHANGED]
        assert not (await search(near, "docs")).degraded


async def held_upsert(far: Running, between: Proxy, late: pb.Document) -> Caught:
    """An upsert that its sender gives up, while its write is still under way."""
    held = between.hold(marker(lua.WRITE))
    upsert = asyncio.create_task(far.upsert("docs", late))
    await held.arrived.wait()
    upsert.cancel()
    await asyncio.wait({upsert})
    return held


async def arrive(held: Caught) -> None:
    held.release.set()
    await held.answered.wait()


@pytest.mark.parametrize("exists", [False, True])
async def test_a_late_write_loses_against_a_newer_one(redis: RedisProcess, exists: bool) -> None:
    async with two_gateways(redis) as (far, near, between):
        await create(near)
        if exists:
            await near.upsert("docs", document("oldest text"))
        held = await held_upsert(far, between, document("old text"))
        [result] = await near.upsert("docs", document("new text"))
        assert result.outcome == (UPDATED if exists else CREATED)
        await arrive(held)
        [got] = await read(near, "x")
        assert got.document.text == "new text"
        assert [result.outcome for result in await near.upsert("docs", document("new text"))] == [UNCHANGED]


@pytest.mark.parametrize("exists", [False, True])
async def test_a_late_write_brings_no_deleted_document_back(redis: RedisProcess, exists: bool) -> None:
    async with two_gateways(redis) as (far, near, between):
        await create(near)
        if exists:
            await near.upsert("docs", document("oldest text"))
        held = await held_upsert(far, between, document("old text"))
        assert await removed(near, "x") == exists
        await arrive(held)
        [got] = await read(near, "x")
        assert got.error.code == grpc.StatusCode.NOT_FOUND.value[0]
        assert not (await search(near, "docs")).hits
        assert [result.outcome for result in await near.upsert("docs", document("old text"))] == [CREATED]


async def test_a_late_change_of_metadata_alone_loses_too(redis: RedisProcess) -> None:
    async with two_gateways(redis) as (far, near, between):
        await create(near)
        await near.upsert("docs", document("text"))
        held = await held_upsert(far, between, document("text", metadata_json='{"v": 1}'))
        await near.upsert("docs", document("text", metadata_json='{"v": 2}'))
        await arrive(held)
        source = pb.CollectionSource(name="docs", filter=".v == 2")
        [hit] = (await near.retrieval.Search(pb.SearchRequest(query="text", collection=source))).hits
        assert hit.metadata_json == '{"v": 2}'


async def test_a_late_deletion_takes_no_newer_document(redis: RedisProcess) -> None:
    async with two_gateways(redis) as (far, near, between):
        await create(near)
        await near.upsert("docs", document("old text"))
        held = between.hold(marker(lua.DELETE))
        deletion = asyncio.create_task(removed(far, "x"))
        await held.arrived.wait()
        deletion.cancel()
        await asyncio.wait({deletion})
        await near.upsert("docs", document("new text"))
        await arrive(held)
        [got] = await read(near, "x")
        assert got.document.text == "new text"


async def test_a_late_alias_loses_against_a_newer_one(redis: RedisProcess) -> None:
    async with two_gateways(redis) as (far, near, between):
        for name in ("blue", "green"):
            await create(near, name)
        held = between.hold(marker(lua.SET_ALIAS))
        switch = asyncio.create_task(_set_alias(far, "blue"))
        await held.arrived.wait()
        switch.cancel()
        await asyncio.wait({switch})
        await _set_alias(near, "green")
        await arrive(held)
        assert (await get(near, "live")).name == "green"


async def _set_alias(gateway: Running, collection: str) -> None:
    await gateway.retrieval.SetAlias(pb.SetAliasRequest(alias="live", collection=collection))


async def test_a_creation_whose_keys_were_swept_begins_again(redis: RedisProcess) -> None:
    """It took longer than it may; another gateway removed its keys before it gave them a name."""
    async with two_gateways(redis) as (far, near, between):
        held = between.hold(marker(lua.CREATE))
        creation = asyncio.create_task(create(far, shards=2))
        await held.arrived.wait()
        with redis.client() as client:
            [(uid, entry)] = client.hgetall("winnow:i:{catalogue}:trash").items()
            client.hset("winnow:i:{catalogue}:trash", uid, entry.replace(b'"after":', b'"after":1,"was":'))
        await create(near, "other")
        held.release.set()
        made = await creation
        assert made.shards == 2
        assert [result.outcome for result in await near.upsert("docs", document("text"))] == [CREATED]
        found = await search(near, "docs")
        assert [hit.id for hit in found.hits] == ["x"]
        assert not found.degraded
        with redis.client() as client:
            assert not client.keys(f"winnow:i:{{{uid.decode()}*")
            assert not client.hgetall("winnow:i:{catalogue}:trash")


@pytest.mark.parametrize("ahead_s", [-1e6, 120, 1e6])
async def test_the_clock_of_another_gateway_does_not_matter(
    redis: RedisProcess, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    async with two_gateways(redis) as (far, near, between):
        held = between.hold(marker(lua.CREATE))
        creation = asyncio.create_task(create(far))
        await held.arrived.wait()
        now = time.time
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now() + ahead_s)
            await create(near, "other")
        held.release.set()
        await creation
        assert [result.outcome for result in await near.upsert("docs", document("text"))] == [CREATED]
        assert not (await search(near, "docs")).degraded


async def test_a_collection_whose_shards_have_no_markers_is_mended(redis: RedisProcess) -> None:
    async with two_gateways(redis) as (far, near, _):
        await create(near, shards=3)
        with redis.client() as client:
            client.delete(*client.keys("winnow:i:*:c"))
        found = await search(near, "docs")
        assert [one.reason for one in found.degradations] == ["SHARD_INCOMPLETE"]
        documents = [pb.Document(id=str(number), text=f"text {number}") for number in range(30)]
        assert {result.outcome for result in await far.upsert("docs", *documents)} == {CREATED}
        assert not (await search(near, "docs")).degraded


async def test_many_writers_and_readers_of_one_document(redis: RedisProcess) -> None:
    """Text and metadata that are read are of one version, whoever writes at the same time; nobody's write is lost."""
    async with two_gateways(redis) as (far, near, _):
        await create(near)
        await near.upsert("docs", document("text 0", metadata_json='{"v": 0}'))
        seen, done = [], asyncio.Event()

        async def writer(gateway: Running, first: int) -> None:
            for version in range(first, 60, 2):
                results = await gateway.upsert("docs", document(f"text {version}", metadata_json=f'{{"v": {version}}}'))
                assert not any(result.HasField("error") for result in results)

        async def reader() -> None:
            while not done.is_set():
                [got] = await read(near, "x")
                [hit] = (await search(far, "docs", rerank=pb.RERANK_POLICY_SKIP)).hits
                seen.extend([(got.document.text, got.document.metadata_json), (hit.text, hit.metadata_json)])

        readers = [asyncio.create_task(reader()) for _ in range(3)]
        await asyncio.gather(writer(near, 1), writer(far, 2))
        done.set()
        await asyncio.gather(*readers)
        assert seen
        for text, metadata in seen:
            assert metadata == f'{{"v": {text.removeprefix("text ")}}}'


async def test_flushall_while_running(redis: RedisProcess) -> None:
    async with two_gateways(redis) as (far, near, _):
        for _ in range(2):
            await create(near)
            await near.upsert("docs", document("text", metadata_json='{"v": 2}'))
            for gateway in (far, near):
                source = pb.CollectionSource(name="docs", filter=".v == 2")
                request = pb.SearchRequest(query="text", collection=source)
                assert len((await gateway.retrieval.Search(request)).hits) == 1
                source.filter = ".v =="
                error = await failure(gateway.retrieval.Search(pb.SearchRequest(query="text", collection=source)))
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            with redis.client() as client:
                client.flushall()
            for gateway in (far, near):
                assert (await failure(search(gateway, "docs"))).code() is grpc.StatusCode.NOT_FOUND
                assert (await failure(gateway.upsert("docs", document("x")))).code() is grpc.StatusCode.NOT_FOUND


async def test_flushall_in_the_middle_of_an_upsert(redis: RedisProcess) -> None:
    async with two_gateways(redis) as (_, near, _):
        await create(near)
        near.embed_worker.gate = asyncio.Event()
        near.embed_worker.waiting.clear()
        upsert = asyncio.create_task(near.upsert("docs", document("text")))
        await near.embed_worker.waiting.wait()
        with redis.client() as client:
            client.flushall()
        near.embed_worker.gate.set()
        [result] = await upsert
        assert result.error.code == grpc.StatusCode.NOT_FOUND.value[0]
        with redis.client() as client:
            assert not client.keys("winnow:i:*:[cvthd]")
