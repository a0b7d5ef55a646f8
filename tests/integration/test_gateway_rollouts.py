"""Whose answers the gateway gives: the model that it tells, and workers that go over to another one."""

import grpc
import pytest

from services.runtime.errors import InvalidField
from tests.support.gateway import flushed, running
from tests.support.redis import RedisProcess
from tests.support.serving import rich_status
from tests.support.vectors import request
from tests.support.workers import EmbedWorker, RerankWorker
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2


async def test_get_model_tells_the_workers_model_and_the_gateways_limits(redis8: RedisProcess) -> None:
    async with running(redis8.url, max_items=7) as gateway:
        model = await gateway.embed.GetModel(embed_pb2.GetModelRequest())
        assert (model.model.fingerprint, model.dimensions, model.limits.max_items) == ("embed-1", 96, 7)
        reranker = await gateway.rerank.GetModel(rerank_pb2.GetModelRequest())
        assert (reranker.model.fingerprint, reranker.limits.max_items) == ("rerank-1", 7)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.embed.Embed(request(["x"] * 8))
        assert rich_status(failed.value).fields == ["texts"]


async def test_a_rollout_never_mixes_models(redis8: RedisProcess) -> None:
    """The worker behind the address changes its model while half of a list is cached."""
    async with running(redis8.url) as gateway:
        await gateway.embed.Embed(request(["a", "b"]))
        gateway.embed_worker.fingerprint = "embed-2"
        response = await gateway.embed.Embed(request(["a", "b", "c"]))
        assert response.model.fingerprint == "embed-2"
        assert not any(result.cache_hit for result in response.results[:2])
        alone = await gateway.embed.Embed(request(["a"]))
        assert alone.model.fingerprint == "embed-2"
        assert alone.results[0].cache_hit
        gateway.embed_worker.fingerprint = "embed-1"
        back = await gateway.embed.Embed(request(["d", "a"]))
        assert back.model.fingerprint == "embed-1"
        assert back.results[1].embedding == (await gateway.embed.Embed(request(["a"]))).results[0].embedding
        await flushed(gateway)
        with redis8.client() as client:
            keys = [key.split(b":")[2] for key in client.keys("winnow:e:*")]
        assert (keys.count(b"embed-1"), keys.count(b"embed-2")) == (3, 3)


async def test_a_request_is_not_refused_by_the_defaults_of_the_model_before() -> None:
    """The gateway fills in the instruction that the old model has by default; the new one accepts none."""
    query = request(["a"], input_type=embed_pb2.INPUT_TYPE_QUERY)
    async with running(model_refresh_seconds=3600) as gateway:
        await gateway.embed.Embed(query)
        gateway.embed_worker.without_instructions().fingerprint = "embed-2"
        response = await gateway.embed.Embed(request(["b"], input_type=embed_pb2.INPUT_TYPE_QUERY))
        assert response.model.fingerprint == "embed-2"
        assert response.results[0].HasField("embedding")
        assert [one.HasField("instruction") for one in gateway.embed_worker.requests] == [True, True, False]
        named = request(["c"], input_type=embed_pb2.INPUT_TYPE_QUERY, instruction="find")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.embed.Embed(named)
        assert rich_status(failed.value).fields == ["instruction"]


async def test_a_wrong_request_is_refused_during_a_rollout_too() -> None:
    async with running(model_refresh_seconds=3600) as gateway:
        await gateway.embed.Embed(request(["a"]))
        gateway.embed_worker.fingerprint = "embed-2"
        await gateway.embed.Embed(request(["b"]))
        gateway.embed_worker.problem = InvalidField("instruction", "leaves no room for text")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.embed.Embed(request(["c"]))
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert rich_status(failed.value).fields == ["instruction"]


async def test_an_answer_has_the_defaults_of_its_own_model() -> None:
    """Cut to what the old model takes, it is computed once more."""
    async with running(embed=EmbedWorker(max_tokens=64), model_refresh_seconds=3600) as gateway:
        await gateway.embed.Embed(request(["a"]))
        gateway.embed_worker.fingerprint, gateway.embed_worker.max_tokens = "embed-2", 512
        response = await gateway.embed.Embed(request(["b" * 100]))
        assert response.model.fingerprint == "embed-2"
        assert (response.results[0].truncated, response.results[0].tokens) == (False, 100)


async def test_scores_follow_a_rollout(redis8: RedisProcess) -> None:
    async with running(redis8.url, rerank=RerankWorker("rerank-1")) as gateway:
        await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="a", documents=["a", "b"]))
        gateway.rerank_worker.fingerprint = "rerank-2"
        response = await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="a", documents=["a", "b", "c"]))
        assert response.model.fingerprint == "rerank-2"
        assert not any(result.cache_hit for result in response.results if result.index < 2)
