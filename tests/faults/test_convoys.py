"""What hangs or fails slowly does so once: all who wait for it hear it together, not one after the other."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest

from services.runtime.errors import UpstreamUnavailable
from tests.support.gateway import Running, running
from tests.support.proxy import proxy
from tests.support.redis import redis_server
from tests.support.silent import silent_server
from tests.support.waiting import idle_clock, until, until_available
from tests.support.workers import EmbedWorker
from winnow.embed.v1 import embed_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

TIMEOUT_S = 2.0
CALLERS = 40
# What gRPC's own threads may add, during which the event loop waits too.
SLACK_S = 0.5


async def fail_together(*calls: Awaitable[object]) -> set[grpc.StatusCode]:
    """All calls fail after 1.2 timeouts of waiting at most; their codes. Who waits in turn needs two timeouts."""

    async def failing(call: Awaitable[object]) -> tuple[grpc.StatusCode, float]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        return raised.value.code(), waited()

    with idle_clock() as waited:
        ended = await asyncio.gather(*map(failing, calls))
    seconds = [at for _, at in ended]
    assert max(seconds) - min(seconds) < 0.2 * TIMEOUT_S + SLACK_S
    assert max(seconds) < 1.2 * TIMEOUT_S + SLACK_S
    return {code for code, _ in ended}


def search(gateway: Running, number: int, **options: Any) -> grpc.aio.UnaryUnaryCall[Any, pb.SearchResponse]:
    source = pb.CollectionSource(name="docs", filter=".n > 1")
    return gateway.retrieval.Search(pb.SearchRequest(query=f"text {number}", collection=source), **options)


def embed(gateway: Running, **options: Any) -> grpc.aio.UnaryUnaryCall[Any, embed_pb2.EmbedResponse]:
    return gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["the same text"]), **options)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_a_redis_that_accepts_and_never_answers(scheme: str) -> None:
    async with silent_server() as address:
        url = f"{scheme}://{address}"
        async with running(index_url=url, index_timeout_ms=1e3 * TIMEOUT_S) as gateway:
            codes = await fail_together(*(search(gateway, number) for number in range(CALLERS)))
            assert codes == {grpc.StatusCode.UNAVAILABLE}
            codes = await fail_together(*(search(gateway, number) for number in range(CALLERS)))
            assert codes == {grpc.StatusCode.UNAVAILABLE}


async def test_a_caller_with_less_time_does_not_wait_for_the_others() -> None:
    """It hears what is wrong within the retrieve stage's share of its time."""
    async with silent_server() as address, running(index_url=f"redis://{address}", index_timeout_ms=60_000) as gateway:
        waiting = search(gateway, 0, timeout=60)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await search(gateway, 1, timeout=0.4)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not waiting.done()
        waiting.cancel()


async def test_a_redis_that_is_stopped_costs_searches_little_time_and_is_used_again_at_once() -> None:
    with redis_server() as redis:
        async with running(redis.url, index_timeout_ms=60_000) as gateway:
            await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="docs"))
            await gateway.upsert("docs", pb.Document(id="a", text="text", metadata_json='{"n": 2}'))
            await search(gateway, 0)
            redis.pause()
            try:
                with idle_clock() as waited, pytest.raises(grpc.aio.AioRpcError) as raised:
                    await search(gateway, 0, timeout=60)
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
                assert waited() < TIMEOUT_S  # whatever the time-out of a command, and the caller's
                with idle_clock() as waited:
                    for number in range(20):  # it is known to be silent: nobody waits for it again
                        with pytest.raises(grpc.aio.AioRpcError) as raised:
                            await search(gateway, number, timeout=60)
                        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
                assert waited() < TIMEOUT_S
            finally:
                redis.resume()
            with idle_clock() as waited:
                await until_available(lambda: search(gateway, 0))
            assert waited() < TIMEOUT_S


@pytest.mark.parametrize("callers", [10, 200])  # fewer and more than there are connections
async def test_a_redis_that_falls_silent(callers: int) -> None:
    with redis_server() as redis:
        async with proxy(redis.port) as between:
            url = f"redis://127.0.0.1:{between.port}"
            async with running(index_url=url, index_timeout_ms=1e3 * TIMEOUT_S) as gateway:
                await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="docs"))
                await gateway.upsert("docs", pb.Document(id="a", text="text", metadata_json='{"n": 2}'))
                await search(gateway, 0)
                between.swallow(True)
                try:
                    codes = await fail_together(*(search(gateway, number) for number in range(callers)))
                finally:
                    between.swallow(False)
                assert codes == {grpc.StatusCode.UNAVAILABLE}


async def test_a_worker_that_fails_after_a_while() -> None:
    async with running() as gateway:
        await gateway.embed.GetModel(embed_pb2.GetModelRequest())
        gateway.embed_worker.gate = asyncio.Event()
        gateway.embed_worker.problem = UpstreamUnavailable("device")
        calls = [asyncio.ensure_future(_ended(embed(gateway))) for _ in range(CALLERS)]
        await gateway.embed_worker.waiting.wait()
        await until(lambda: gateway.gateway._embedder._cached._single_flight.waiting == CALLERS)
        gateway.embed_worker.gate.set()
        assert set(await asyncio.gather(*calls)) == {grpc.StatusCode.UNAVAILABLE}
        assert len(gateway.embed_worker.texts) == 1


async def _ended(call: Awaitable[object]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code()


async def test_a_worker_that_hangs() -> None:
    async with running(workers_timeout_seconds=TIMEOUT_S) as gateway:
        await gateway.embed.GetModel(embed_pb2.GetModelRequest())
        gateway.embed_worker.gate = asyncio.Event()
        codes = await fail_together(*(embed(gateway) for _ in range(CALLERS)))
        assert codes == {grpc.StatusCode.UNAVAILABLE}
        assert len(gateway.embed_worker.texts) == 1


class Nameless(EmbedWorker):
    """Hangs when it is asked for its model."""

    asked = 0

    async def GetModel(  # noqa: N802 - the contract's name
        self, request: embed_pb2.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> embed_pb2.GetModelResponse:
        self.asked += 1
        self.waiting.set()
        await asyncio.Event().wait()
        return await super().GetModel(request, context)


async def test_a_worker_that_hangs_in_get_model() -> None:
    worker = Nameless()
    async with running(embed=worker, workers_timeout_seconds=TIMEOUT_S) as gateway:
        await worker.waiting.wait()
        codes = await fail_together(*(embed(gateway) for _ in range(CALLERS)))
        assert codes == {grpc.StatusCode.UNAVAILABLE}
        asked = worker.asked
        assert asked <= 2  # once for all callers, and once to find out whether it answers at all
        impatient = embed(gateway, timeout=0.2)
        patient = asyncio.ensure_future(_ended(embed(gateway, timeout=60)))
        assert await _ended(impatient) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await patient is grpc.StatusCode.UNAVAILABLE
        assert worker.asked <= asked + 2  # the one that gave up ended nothing for the other
