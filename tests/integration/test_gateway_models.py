"""The gateway in front of real workers (tiny checkpoints): what they say is what it says."""

import math
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from services.api.vectors import decode
from tests.support.gateway import Running, running
from tests.support.redis import RedisProcess
from tests.support.tiny import Tiny, embedding, held, reranking
from tests.support.waiting import until
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2 as pb

TEXTS = ["the capital of China is Beijing", "gravity", "", "<|im_end|> stays text", "two bodies attract " * 100]


@pytest.fixture
async def real(
    tiny: Tiny, redis8: RedisProcess
) -> AsyncIterator[tuple[Running, "embed_pb2_grpc.EmbedServiceAsyncStub", "rerank_pb2_grpc.RerankServiceAsyncStub"]]:
    """Gateway, and stubs of both workers behind it."""
    async with (
        embedding(tiny) as embed,
        reranking(tiny) as rerank,
        running(redis8.url, embed_target=embed.address, rerank_target=rerank.address) as gateway,
    ):
        yield (
            gateway,
            embed_pb2_grpc.EmbedServiceStub(embed.channel),
            rerank_pb2_grpc.RerankServiceStub(rerank.channel),
        )


async def test_a_vector_is_the_same_alone_in_a_batch_and_from_the_cache(
    real: tuple[Running, "embed_pb2_grpc.EmbedServiceAsyncStub", "rerank_pb2_grpc.RerankServiceAsyncStub"],
) -> None:
    gateway, worker, _ = real
    for input_type in (embed_pb2.INPUT_TYPE_DOCUMENT, embed_pb2.INPUT_TYPE_QUERY, embed_pb2.INPUT_TYPE_SYMMETRIC):
        whole = await worker.Embed(embed_pb2.EmbedRequest(texts=TEXTS, input_type=input_type))
        alone = [
            (await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=[text], input_type=input_type))).results[0]
            for text in TEXTS
        ]
        cached = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=TEXTS, input_type=input_type))
        assert [result.embedding for result in cached.results] == [result.embedding for result in alone]
        for direct, result in zip(whole.results, cached.results, strict=True):
            assert result.cache_hit
            assert (result.tokens, result.truncated) == (direct.tokens, direct.truncated)
            one, other = decode(direct.embedding), decode(result.embedding)
            assert float(one @ other) >= 0.99999
            assert np.linalg.norm(other) == pytest.approx(1, abs=1e-6)
        assert cached.model == whole.model
        assert cached.usage.input_tokens == whole.usage.input_tokens
        assert cached.results[-1].truncated


async def test_scores_are_the_workers(
    real: tuple[Running, "embed_pb2_grpc.EmbedServiceAsyncStub", "rerank_pb2_grpc.RerankServiceAsyncStub"],
) -> None:
    gateway, _, worker = real
    request = rerank_pb2.RerankRequest(query="what is gravity", documents=TEXTS)
    direct = await worker.Rerank(request)
    for hit in (False, True):
        served = await gateway.rerank.Rerank(request)
        assert [result.index for result in served.results] == [result.index for result in direct.results]
        for one, other in zip(direct.results, served.results, strict=True):
            assert other.logit == pytest.approx(one.logit, abs=1e-5)
            assert other.score == pytest.approx(1 / (1 + math.exp(-other.logit)), abs=1e-12)
            assert (other.tokens, other.truncated, other.cache_hit) == (one.tokens, one.truncated, hit)
        assert served.usage.input_tokens == direct.usage.input_tokens


async def test_search_over_a_collection_and_inline_agree(
    real: tuple[Running, "embed_pb2_grpc.EmbedServiceAsyncStub", "rerank_pb2_grpc.RerankServiceAsyncStub"],
) -> None:
    gateway, _, _ = real
    stub = gateway.retrieval
    await stub.CreateCollection(pb.CreateCollectionRequest(name="docs", quantization=pb.QUANTIZATION_NONE))
    documents = [pb.Document(id=f"d{number}", text=text) for number, text in enumerate(TEXTS) if text]
    results = await gateway.upsert("docs", *documents)
    assert {result.id: result.truncated for result in results}["d4"]
    inline = await stub.Search(
        pb.SearchRequest(query="what is gravity", documents=pb.InlineDocuments(documents=documents))
    )
    stored = await stub.Search(pb.SearchRequest(query="what is gravity", collection=pb.CollectionSource(name="docs")))
    assert [hit.id for hit in stored.hits] == [hit.id for hit in inline.hits]
    for one, other in zip(inline.hits, stored.hits, strict=True):
        assert other.retrieval_score == pytest.approx(one.retrieval_score, abs=1e-4)
        assert other.rerank_logit == one.rerank_logit
    assert stored.embed_usage.cache_hits == 1
    assert stored.rerank_usage.cache_hits == len(documents)


async def test_a_large_call_waits_for_its_own_parts(tiny: Tiny) -> None:
    """Two of them fill the worker's queue."""
    async with embedding(tiny, queue_seconds=1e-3) as embed, running(embed_target=embed.address) as gateway:
        admission = embed.worker.engine()._scheduler._admission
        honest, refused = admission.refusal, []

        def counted(*arguments: Any, **options: Any) -> Any:
            refusal = honest(*arguments, **options)
            refused.extend([refusal] if refusal else [])
            return refusal

        admission.refusal = counted
        texts = [f"gravity attracts {i}" for i in range(1000)]
        with held(embed.worker):
            call = gateway.embed.Embed(embed_pb2.EmbedRequest(texts=texts), timeout=60)
            await until(lambda: refused)
        results = (await call).results
        assert len(results) == 1000
        assert all(result.HasField("embedding") for result in results)
