"""Bad luck with the cache's Redis: no Embed or Rerank fails, none waits longer than the patience, and it recovers."""

import asyncio
import time
from itertools import count
from typing import Any

import pytest

from tests.support.gateway import NOWHERE, Running, flushed, running
from tests.support.proxy import proxy
from tests.support.redis import redis_server
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2

PATIENCE_MS = 100
FAILURES = 3
FAST: dict[str, Any] = {
    "cache_read_timeout_ms": PATIENCE_MS,
    "cache_breaker_failures": FAILURES,
    "cache_breaker_open_ms": 200,
    "cache_local_bytes": 0,
}
# What a call may take on a busy machine beside the look-up, and how often it may take longer all the same.
CALL_S = 0.25
OUTLIERS = 3

numbers = count()


async def one_of_each(gateway: Running, name: str | None = None) -> list[float]:
    """An Embed and a Rerank that must succeed; their seconds."""
    text = name or f"text {next(numbers)}"
    seconds = []
    for call in (
        lambda: gateway.embed.Embed(embed_pb2.EmbedRequest(texts=[text])),
        lambda: gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="text", documents=[text])),
    ):
        began = time.perf_counter()
        response = await call()
        seconds.append(time.perf_counter() - began)
        assert len(response.results) == 1
    return seconds


async def bear(gateway: Running, calls: int = 20) -> None:
    """No call fails or waits longer than the patience; after a few the rest does not wait at all."""
    seconds = []
    for _ in range(calls):
        seconds += await one_of_each(gateway)
    seconds.sort()
    assert seconds[-1 - OUTLIERS] < PATIENCE_MS / 1e3 + CALL_S
    waited = [took for took in seconds if took > 0.9 * PATIENCE_MS / 1e3]
    assert len(waited) <= FAILURES + 1 + OUTLIERS + sum(seconds) / 0.2, "the breaker did not open"


async def recover(gateway: Running) -> None:
    """A hit from Redis is seen again, by itself."""
    async with asyncio.timeout(40):
        while True:
            await one_of_each(gateway, "the same text")
            await flushed(gateway)
            response = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["the same text"]))
            if response.results[0].cache_hit:
                return


async def test_absent() -> None:
    async with running(f"redis://{NOWHERE}", **FAST) as gateway:
        await bear(gateway)


async def test_killed_and_back() -> None:
    with redis_server() as redis:
        async with running(redis.url, **FAST) as gateway:
            await recover(gateway)
            redis.kill()
            await bear(gateway)
            redis.start()
            await recover(gateway)


async def test_killed_in_mid_call_under_load() -> None:
    with redis_server() as redis:
        async with running(redis.url, **FAST) as gateway:
            await recover(gateway)
            calls = [asyncio.create_task(one_of_each(gateway)) for _ in range(50)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            redis.kill()
            await asyncio.gather(*calls)


async def test_paused_and_back() -> None:
    with redis_server() as redis:
        async with running(redis.url, **FAST) as gateway:
            await recover(gateway)
            redis.pause()
            try:
                await bear(gateway)
            finally:
                redis.resume()
            await recover(gateway)


async def test_slow_and_back() -> None:
    with redis_server() as redis:
        async with proxy(redis.port) as between, running(f"redis://127.0.0.1:{between.port}", **FAST) as gateway:
            await recover(gateway)
            between.delay_s = 0.5
            await bear(gateway)
            between.delay_s = 0.0
            await recover(gateway)


async def test_swallowing_everything_and_back() -> None:
    with redis_server() as redis:
        async with proxy(redis.port) as between, running(f"redis://127.0.0.1:{between.port}", **FAST) as gateway:
            await recover(gateway)
            between.swallow(True)
            await bear(gateway)
            between.swallow(False)
            await recover(gateway)


async def test_full_and_back() -> None:
    with redis_server("--maxmemory-policy", "noeviction") as redis:
        async with running(redis.url, **FAST) as gateway:
            await recover(gateway)
            with redis.client() as client:
                client.config_set("maxmemory", "1")
                await bear(gateway)
                await flushed(gateway)
                assert len(client.keys("winnow:[es]:*")) == 2
                # What is there is still read: only writes are refused.
                response = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["the same text"]))
                assert response.results[0].cache_hit
                client.flushall()
                client.config_set("maxmemory", "0")
            await recover(gateway)


async def test_read_only_and_back() -> None:
    with redis_server() as redis:
        async with running(redis.url, **FAST) as gateway:
            await recover(gateway)
            with redis.client() as client:
                client.replicaof("127.0.0.1", 1)
                await bear(gateway)
                client.replicaof("NO", "ONE")
            await recover(gateway)


async def test_no_permission() -> None:
    with redis_server() as redis:
        with redis.client() as client:
            client.execute_command("ACL", "SETUSER", "nobody", "on", ">secret", "-@all", "+info")
        url = redis.url.replace("redis://", "redis://nobody:secret@")
        async with running(url, **FAST) as gateway:
            await bear(gateway)


async def test_writes_never_hold_up_an_answer_and_are_bounded() -> None:
    with redis_server() as redis:
        async with running(redis.url, **FAST | {"cache_queue_bytes": 2000}) as gateway:
            await recover(gateway)
            redis.pause()
            try:
                await bear(gateway, calls=30)
                assert gateway.gateway._remote is not None
                assert gateway.gateway._remote._queued_bytes <= 2000
            finally:
                redis.resume()
            await recover(gateway)


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_search_over_inline_documents_does_not_mind(fault: str) -> None:
    documents = retrieval_pb2.InlineDocuments(documents=[retrieval_pb2.Document(text="red apple")])
    with redis_server() as redis:
        async with running(redis.url, **FAST) as gateway:
            getattr(redis, fault)()
            for _ in range(5):
                found = await gateway.retrieval.Search(
                    retrieval_pb2.SearchRequest(query=f"apple {next(numbers)}", documents=documents), timeout=5
                )
                assert len(found.hits) == 1
                assert not found.degraded
            if fault == "pause":
                redis.resume()


async def test_the_gateway_starts_while_redis_is_paused() -> None:
    with redis_server() as redis:
        redis.pause()
        try:
            async with running(redis.url, **FAST) as gateway:
                await bear(gateway, calls=5)
                redis.resume()
                await recover(gateway)
        finally:
            redis.resume()
