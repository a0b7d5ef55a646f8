"""Whose answers the gateway gives: the model that it tells, and workers that go over to another one."""

import grpc
import pytest

from tests.support.gateway import flushed, running
from tests.support.redis import RedisProcess
from tests.support.serving import rich_status
from tests.support.vectors import request
from tests.support.workers import RerankWorker
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


async def test_scores_follow_a_rollout(redis8: RedisProcess) -> None:
    async with running(redis8.url, rerank=RerankWorker("rerank-1")) as gateway:
        await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="a", documents=["a", "b"]))
        gateway.rerank_worker.fingerprint = "rerank-2"
        response = await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="a", documents=["a", "b", "c"]))
        assert response.model.fingerprint == "rerank-2"
        assert not any(result.cache_hit for result in response.results if result.index < 2)
