"""More at once than there are connections to Redis: calls wait for their turn, and a Redis that is idle fails none."""

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable
from itertools import count

import grpc
import numpy as np
import pytest

from gateway.index.catalogue import Catalogue
from gateway.index.collection import ModelRef, Quantization
from gateway.index.store import Store, StoreSettings
from gateway.redis.client import QueueTimeoutError, RedisClient, Unreachable
from services.runtime.errors import Problem
from tests.support.cluster import ClusterProcesses, redis_cluster
from tests.support.gateway import Running, running
from tests.support.proxy import proxy
from tests.support.redis import redis_server
from tests.support.waiting import until
from winnow.retrieval.v1 import retrieval_pb2 as pb

CONNECTIONS = 64

numbers = count()


def search(gateway: Running, *, timeout: float = 120) -> Awaitable[pb.SearchResponse]:
    source = pb.CollectionSource(name="docs")
    request = pb.SearchRequest(query=f"red text {next(numbers)}", collection=source, candidates=5, top_n=5)
    return gateway.retrieval.Search(request, timeout=timeout)


async def fill(gateway: Running, shards: int) -> None:
    await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="docs", shards=shards))
    documents = [pb.Document(id=f"d{number}", text=f"red text {number}") for number in range(2 * shards)]
    assert not any(result.HasField("error") for result in await gateway.upsert("docs", *documents))


@pytest.mark.parametrize("searches", [100, 300])
async def test_many_searches_at_once(searches: int) -> None:
    with redis_server() as redis:
        async with running(redis.url, search_timeout_seconds=120) as gateway:
            await fill(gateway, 4)
            found = await asyncio.gather(*(search(gateway) for _ in range(searches)))
            assert not any(one.degraded for one in found)
            with redis.client() as client:
                assert client.info("clients")["connected_clients"] < 3 * CONNECTIONS


@pytest.mark.parametrize("shards", [65, 128, 256])
async def test_many_shards(shards: int) -> None:
    with redis_server() as redis:
        async with running(redis.url) as gateway:
            await fill(gateway, shards)
            found = await asyncio.gather(*(search(gateway) for _ in range(5)))
            assert not any(one.degraded for one in found)
            assert {len(one.hits) for one in found} == {5}


async def test_many_shards_and_searches_in_a_cluster() -> None:
    with redis_cluster() as cluster:
        async with running(cluster.url, search_timeout_seconds=120) as gateway:
            await fill(gateway, 256)
            found = await asyncio.gather(*(search(gateway) for _ in range(70)))
            assert not any(one.degraded for one in found)


@pytest.mark.parametrize("clustered", [False, True])
async def test_many_commands_at_once(clustered: bool) -> None:
    """More calls than connections, each on its own: none fails, and no more connections than allowed are open."""
    with redis_cluster() if clustered else redis_server() as redis:
        client = RedisClient(redis.url, 60.0, connections=3)
        try:
            replies = await asyncio.gather(*(client.command("SET", f"k{n}", str(n)) for n in range(500)))
            assert set(replies) == {True}
            values = await client.commands([("GET", f"k{n}") for n in range(500)], at_once=4)
            assert values == [str(n).encode() for n in range(500)]
            nodes = redis.nodes[:3] if isinstance(redis, ClusterProcesses) else [redis]
            for node in nodes:
                with node.client() as own:
                    assert sum(one["name"] == "" for one in own.client_list()) < 20
        finally:
            await client.close()


async def test_the_wait_for_a_turn_is_bounded_by_the_callers_time() -> None:
    """Our own limit is said to be ours: the server is slow, not away."""
    with redis_server() as redis:
        client = RedisClient(redis.url, 60.0, connections=1)
        try:
            await client.connect()
            slow = asyncio.create_task(client.command("BLPOP", "nothing", "1"))
            await until(lambda: client.in_flight)
            [reply] = await client.commands([("PING", "x")], budget_s=0.05)
            assert isinstance(reply, QueueTimeoutError)
            assert await slow is None
            assert await client.command("ECHO", "x") == b"x"
        finally:
            await client.close()


async def test_what_waited_in_vain_is_not_sent() -> None:
    with redis_server() as redis:
        client = RedisClient(redis.url, 60.0, connections=1)
        try:
            await client.connect()
            slow = asyncio.create_task(client.command("BLPOP", "nothing", "0.3"))
            await until(lambda: client.in_flight)
            waiting = asyncio.create_task(client.command("SET", "k", "v"))
            await asyncio.sleep(0)
            waiting.cancel()
            await slow
            assert await client.command("GET", "k") is None
        finally:
            await client.close()


async def test_an_overloaded_index_is_not_an_absent_one() -> None:
    with redis_server() as redis:
        client = RedisClient(redis.url, 60.0, connections=1)
        store = Store(client, client, StoreSettings(ef=10, filter_ef=10, replicas=0))
        try:
            built_with = ModelRef("model", "", "fingerprint")
            collection = await Catalogue(client).create("docs", built_with, 4, Quantization.INT8, 2)
            slow = asyncio.create_task(client.command("BLPOP", "nothing", "1"))
            await until(lambda: client.in_flight)
            with pytest.raises(Problem) as raised:
                await store.search(collection, np.ones(4, np.float32), 1, None, "filter", 0.05)
            assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert "index" in raised.value.message
            await slow
            found = await store.search(collection, np.ones(4, np.float32), 1, None, "filter", 60)
            assert not found.missing_shards
        finally:
            await client.close()


async def test_a_connection_that_comes_too_late_is_closed() -> None:
    """Handshake and question each in time, both together not: the attempt has failed when the answer comes."""
    with redis_server() as redis:
        async with proxy(redis.port) as between:
            between.delay_s = 0.35
            client = RedisClient(f"redis://127.0.0.1:{between.port}", 1.0)
            try:
                with pytest.raises(Unreachable):
                    await client.connect()
                await until(lambda: not client.in_flight)
                with redis.client() as own:
                    await until(lambda: own.info("clients")["connected_clients"] == 1)
            finally:
                await client.close()


def connections_to(port: int) -> int:
    """How many sockets of this process are connected to a port."""
    count = 0
    for number in map(int, os.listdir("/dev/fd")):
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as one:
                count += one.family != socket.AF_UNIX and one.getpeername()[1] == port
        except OSError:  # not connected, or closed meanwhile
            continue
    return count


async def test_a_redis_that_reads_nothing_holds_no_connection() -> None:
    """What it does not read stays in the buffer of a connection that was given up: it is dropped, not kept for ever."""
    with redis_server() as redis:
        client = RedisClient(redis.url, 0.3)
        try:
            await client.connect()
            assert connections_to(redis.port) == 1
            redis.pause()
            with pytest.raises(Unreachable):
                await client.command("SET", "k", bytes(64 << 20))
            await until(lambda: not client.in_flight)
            await until(lambda: connections_to(redis.port) == 0)
        finally:
            redis.resume()
            await client.close()
