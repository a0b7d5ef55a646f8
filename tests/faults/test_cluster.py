"""Cache and collections on a real Redis Cluster: three masters, three replicas, and what happens when one dies."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from functools import partial
from itertools import count
from typing import Any

import grpc
import pytest

from tests.support.cluster import ClusterProcesses, redis_cluster
from tests.support.gateway import Running, flushed, running
from tests.support.waiting import until, until_available
from winnow.embed.v1 import embed_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

# redis-py drops connections unclosed when it looks for the new master while others use the old one.
pytestmark = [
    pytest.mark.timeout(180),  # six servers, and a failover takes its time on a busy machine
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

numbers = count()
FAST: dict[str, Any] = {"index_timeout_ms": 1000, "stream_retry_seconds": 60}


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[ClusterProcesses]:
    with redis_cluster() as made:
        yield made


@pytest.fixture
def cluster(shared_cluster: ClusterProcesses) -> ClusterProcesses:
    """A whole cluster, empty."""
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture
def own_cluster() -> Iterator[ClusterProcesses]:
    """A cluster to break."""
    with redis_cluster() as made:
        yield made


async def create(gateway: Running, **options: Any) -> pb.Collection:
    request = pb.CreateCollectionRequest(name="docs", **options)
    return (await gateway.retrieval.CreateCollection(request)).collection


def documents(first: int, last: int) -> list[pb.Document]:
    return [
        pb.Document(id=f"d{number}", text=f"red text {number}", metadata_json=f'{{"n": {number}}}')
        for number in range(first, last)
    ]


def search(gateway: Running, filter_: str = "", **options: Any) -> Awaitable[pb.SearchResponse]:
    source = pb.CollectionSource(name="docs", filter=filter_)
    request = pb.SearchRequest(query=f"red text {next(numbers)}", collection=source, **options)
    return gateway.retrieval.Search(request, timeout=10)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_the_cache_is_spread_over_the_masters(cluster: ClusterProcesses, scheme: str) -> None:
    texts = [f"text {number}" for number in range(100)]
    url = cluster.url.replace("redis", scheme, 1)
    for hit in (False, True):
        async with running(url) as gateway:
            response = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=texts))
            assert {result.cache_hit for result in response.results} == {hit}
            await flushed(gateway)
    for node in cluster.nodes[:3]:
        with node.client() as client:
            assert client.dbsize() > 10


async def test_collections_are_spread_over_the_masters_and_work(cluster: ClusterProcesses) -> None:
    async with running(cluster.url) as gateway:
        made = await create(gateway)
        assert made.shards == 9
        assert gateway.gateway._index is not None
        assert gateway.gateway._index_client is not None
        collection = await gateway.gateway._index.catalogue.resolve("docs")
        client = gateway.gateway._index_client
        assert set(Counter(client.master_of(tag) for tag in collection.shards).values()) == {3}
        outcomes = {result.outcome for result in await gateway.upsert("docs", *documents(0, 200))}
        assert outcomes == {pb.UPSERT_OUTCOME_CREATED}
        found = await search(gateway, ".n >= 190", candidates=50, top_n=50)
        assert {hit.id for hit in found.hits} == {f"d{number}" for number in range(190, 200)}
        assert not found.degraded
        removed = await gateway.retrieval.DeleteDocuments(
            pb.DeleteDocumentsRequest(collection="docs", ids=[f"d{number}" for number in range(150)])
        )
        assert removed.deleted == 150
        got = await gateway.retrieval.GetDocuments(pb.GetDocumentsRequest(collection="docs", ids=["d0", "d199"]))
        assert [one.WhichOneof("outcome") for one in got.results] == ["error", "document"]
        seen = (await gateway.retrieval.GetCollection(pb.GetCollectionRequest(name="docs"))).collection
        assert seen.document_count == 50
        await gateway.retrieval.SetAlias(pb.SetAliasRequest(alias="live", collection="docs"))
        await gateway.retrieval.DeleteCollection(pb.DeleteCollectionRequest(name="docs"))
    for node in cluster.nodes[:3]:
        with node.client() as client:
            assert not client.keys("winnow:i:*:[cvth]")


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_master_lost_in_mid_search(own_cluster: ClusterProcesses, fault: str) -> None:
    """Searches go on, degraded, and are whole again when the replica has taken over: by themselves."""
    async with running(own_cluster.url, **FAST) as gateway:
        await create(gateway)
        await gateway.upsert("docs", *documents(0, 100))
        own_cluster.until_whole()
        stop = asyncio.Event()
        seen: list[pb.SearchResponse] = []
        refused = 0

        async def searcher() -> None:
            nonlocal refused
            while not stop.is_set():
                try:
                    seen.append(await search(gateway, candidates=100, top_n=100))
                except grpc.aio.AioRpcError as error:
                    # On a starved machine no node answers in time while the client looks for the new master.
                    assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017
                    refused += 1

        searchers = [asyncio.create_task(searcher()) for _ in range(3)]
        try:
            await until(lambda: len(seen) > 10)
            getattr(own_cluster.nodes[1], fault)()
            await until(lambda: seen[-1].degraded)
            assert {one.reason for one in seen[-1].degradations} == {"SHARD_UNAVAILABLE"}
            assert 30 < len(seen[-1].hits) < 100
            await asyncio.to_thread(own_cluster.until_replaced, 1)
            begun = len(seen)
            await until(lambda: any(not one.degraded and len(one.hits) == 100 for one in seen[begun:]))
        finally:
            stop.set()
            await asyncio.gather(*searchers)
            assert refused < len(seen)
            if fault == "pause":
                own_cluster.nodes[1].resume()


async def test_a_master_lost_in_mid_upsert_loses_nothing_acknowledged(own_cluster: ClusterProcesses) -> None:
    """With GATEWAY_INDEX_REPLICAS=1 an acknowledged document is on the replica that takes over."""
    async with running(own_cluster.url, **FAST, index_replicas=1, stream_window_tokens=2000) as gateway:
        await create(gateway)
        acknowledged: list[str] = []
        fell = asyncio.Event()

        async def come_back() -> None:
            """As the replica that the new master must have before anything is acknowledged again."""
            await fell.wait()
            await asyncio.to_thread(own_cluster.until_replaced, 2)
            await asyncio.to_thread(own_cluster.nodes[2].start)

        async def requests() -> AsyncIterator[pb.UpsertDocumentsRequest]:
            for start in range(0, 2000, 20):
                yield pb.UpsertDocumentsRequest(
                    collection="" if start else "docs", documents=documents(start, start + 20)
                )

        rescue = asyncio.create_task(come_back())
        async for response in gateway.retrieval.UpsertDocuments(requests()):
            acknowledged += [result.id for result in response.results if not result.HasField("error")]
            if len(acknowledged) > 500 and not fell.is_set():
                own_cluster.nodes[2].kill()
                fell.set()
        await rescue
        assert len(acknowledged) == len(set(acknowledged)) == 2000  # the stream bore with the failover
        missing = []
        for start in range(0, 2000, 500):
            request = pb.GetDocumentsRequest(collection="docs", ids=acknowledged[start : start + 500])
            got = await until_available(partial(gateway.retrieval.GetDocuments, request))
            missing += [one for one in got.results if one.WhichOneof("outcome") != "document"]
        assert not missing
        seen = (await gateway.retrieval.GetCollection(pb.GetCollectionRequest(name="docs"))).collection
        assert seen.document_count == 2000


async def test_without_replicas_in_step_nothing_is_acknowledged(own_cluster: ClusterProcesses) -> None:
    async with running(own_cluster.url, index_replicas=1, stream_retry_seconds=0.5) as gateway:
        await create(gateway, shards=1)
        assert gateway.gateway._index is not None
        assert gateway.gateway._index_client is not None
        collection = await gateway.gateway._index.catalogue.resolve("docs")
        at = gateway.gateway._index_client.master_of(collection.shards[0])
        number = next(n for n, node in enumerate(own_cluster.nodes[:3]) if at.endswith(f":{node.port}"))
        own_cluster.nodes[3 + number].pause()
        try:
            [result] = await gateway.upsert("docs", *documents(0, 1))
            assert result.error.code == 14
            [result] = await gateway.upsert("docs", *documents(0, 1))  # it is there by now, on the master alone
            assert result.error.code == 14
        finally:
            own_cluster.nodes[3 + number].resume()
        results = await gateway.upsert("docs", *documents(0, 1))
        assert [result.outcome for result in results] == [pb.UPSERT_OUTCOME_UNCHANGED]


async def test_the_cache_bears_the_loss_of_a_master(own_cluster: ClusterProcesses) -> None:
    async with running(own_cluster.url, cache_read_timeout_ms=100, cache_local_bytes=0) as gateway:
        texts = [f"text {number}" for number in range(30)]
        await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=texts))
        await flushed(gateway)
        own_cluster.nodes[0].kill()
        for _ in range(20):
            response = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=texts))
            assert all(result.WhichOneof("outcome") == "embedding" for result in response.results)
        await asyncio.to_thread(own_cluster.until_replaced, 0)

        async def all_hit() -> bool:
            response = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=texts))
            await flushed(gateway)
            return all(result.cache_hit for result in response.results)

        while not await all_hit():
            pass
