"""A Redis that answers and refuses: its operator reads why in the log, once; callers hear what the index cannot do."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.support.gateway import Running, flushed, running
from tests.support.redis import RedisProcess, redis_server
from tests.support.serving import failure, rich_status
from tests.support.waiting import until
from winnow.embed.v1 import embed_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

SECRET = "wrong-secret"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[..., Any]:
    """What was said about Redis so far."""
    caplog.set_level(logging.INFO, "winnow.redis")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "winnow.redis"]


async def upsert(gateway: Running, number: int) -> list[pb.UpsertResult]:
    return await gateway.upsert("docs", pb.Document(id=f"d{number}", text=f"red text {number}"))


async def create(gateway: Running) -> None:
    await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="docs"))


async def embed(gateway: Running, text: str) -> None:
    await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=[text]))
    await flushed(gateway)


async def test_out_of_memory_and_back(lines: Callable[..., Any]) -> None:
    with redis_server("--maxmemory-policy", "noeviction") as redis, redis.client() as own:
        async with running(index_url=redis.url, stream_retry_seconds=0) as gateway:
            await create(gateway)
            own.config_set("maxmemory", "1")
            for number in range(3):
                [result] = await upsert(gateway, number)
                assert result.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
                assert "out of memory" in result.error.message
                assert "maxmemory" not in result.error.message
            assert len(lines()) == 1
            assert "index: Redis at 127.0.0.1" in lines()[0]
            assert "maxmemory" in lines()[0]
            own.config_set("maxmemory", "0")
            [result] = await upsert(gateway, 0)
            assert not result.HasField("error")
            assert len(lines()) == 2
            assert "works again" in lines()[1]


async def test_a_cache_out_of_memory(lines: Callable[..., Any]) -> None:
    with redis_server("--maxmemory-policy", "noeviction") as redis, redis.client() as own:
        async with running(cache_url=redis.url, cache_breaker_failures=100) as gateway:
            await embed(gateway, "before")
            own.config_set("maxmemory", "1")
            for number in range(3):
                await embed(gateway, f"text {number}")
            assert len(lines()) == 1
            assert "cache: Redis at" in lines()[0]
            own.config_set("maxmemory", "0")
            await embed(gateway, "after")
            assert len(lines()) == 2


async def test_a_read_only_replica(lines: Callable[..., Any]) -> None:
    with redis_server() as master, redis_server("--replicaof", "127.0.0.1", str(master.port)) as replica:
        async with running(master.url, stream_retry_seconds=0) as gateway:
            await create(gateway)
            with master.client() as own:
                own.execute_command("WAIT", 1, 0)
        async with running(index_url=replica.url, stream_retry_seconds=0) as gateway:
            error = await failure(gateway.retrieval.GetCollection(pb.GetCollectionRequest(name="docs")))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "accepts no writes" in str(error.details())
            assert len(lines()) == 1
            assert "GATEWAY_INDEX_URL must name the master" in lines()[0]


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_a_wrong_password_is_said_at_the_start_by_the_name_of_its_setting(
    scheme: str, lines: Callable[..., Any]
) -> None:
    with redis_server("--requirepass", "right") as redis:
        url = f"{scheme}://:{SECRET}@127.0.0.1:{redis.port}"
        async with running(cache_url=url, index_url=url) as gateway:
            await until(lambda: len(lines()) == 2)
            assert any("cache" in line and "GATEWAY_CACHE_URL" in line for line in lines())
            assert any("index" in line and "GATEWAY_INDEX_URL" in line for line in lines())
            error = await failure(gateway.retrieval.GetCollection(pb.GetCollectionRequest(name="docs")))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert rich_status(error).reason == "UPSTREAM_UNAVAILABLE"
            assert "rejects this gateway" in str(error.details())
            assert SECRET not in "".join(lines()) + str(error.details())


def limited(redis: RedisProcess, *rights: str) -> str:
    with redis.client() as own:
        own.execute_command("ACL", "SETUSER", "limited", "on", ">pw", *rights)
    return f"redis://limited:pw@127.0.0.1:{redis.port}"


async def test_a_cache_that_may_not_write_is_said_at_the_start(lines: Callable[..., Any]) -> None:
    with redis_server() as redis:
        async with running(cache_url=limited(redis, "~winnow:*", "+@all", "-set")):
            await until(lines)
            assert "GATEWAY_CACHE_URL run SET" in lines()[0]


async def test_missing_rights_within_a_script(lines: Callable[..., Any]) -> None:
    with redis_server() as redis:
        url = limited(redis, "~winnow:*", "+@all", "-hset")
        async with running(redis.url) as gateway:
            await create(gateway)
        async with running(index_url=url, stream_retry_seconds=0) as gateway:
            [result] = await upsert(gateway, 0)
            assert result.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
            assert "does not permit this gateway" in result.error.message
            assert "hset" not in result.error.message.lower()
            assert len(lines()) == 1
            assert "GATEWAY_INDEX_URL run EVAL" in lines()[0]


async def test_a_server_that_goes_and_comes_back(lines: Callable[..., Any]) -> None:
    with redis_server() as redis:
        async with running(index_url=redis.url) as gateway:
            await create(gateway)
            redis.kill()
            for _ in range(3):
                await failure(gateway.retrieval.ListCollections(pb.ListCollectionsRequest()))
            assert len(lines()) == 1
            assert "cannot be reached" in lines()[0]
            redis.start()
            await gateway.retrieval.ListCollections(pb.ListCollectionsRequest())
            assert len(lines()) == 2


async def test_the_labels_of_metrics_are_words(lines: Callable[..., Any]) -> None:
    seen = []
    with redis_server("--maxmemory-policy", "noeviction") as redis, redis.client() as own:
        async with running(cache_url=redis.url) as gateway:
            gateway.gateway._metrics.cache_error = lambda *labels: seen.append(labels)  # type: ignore[method-assign]
            own.config_set("maxmemory", "1")
            await embed(gateway, "text")
            own.config_set("maxmemory", "0")
            with redis_server() as master:
                own.execute_command("REPLICAOF", "127.0.0.1", str(master.port))
                await embed(gateway, "another text")
            own.execute_command("REPLICAOF", "NO", "ONE")
    assert ("write", "OutOfMemoryError") in seen
    assert ("write", "ReadOnlyError") in seen
    await asyncio.sleep(0)
