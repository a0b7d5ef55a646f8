"""The gateway over models that take no instructions, have fixed vectors, or score by logits."""

import math
from collections.abc import AsyncIterator, Awaitable

import grpc
import pytest

from tests.support.gateway import Running, running
from tests.support.redis import RedisProcess
from tests.support.serving import rich_status
from tests.support.workers import EmbedWorker, RerankWorker
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

DOCUMENT, QUERY = embed_pb2.INPUT_TYPE_DOCUMENT, embed_pb2.INPUT_TYPE_QUERY
FRUIT = ["red apple", "green pear", "yellow banana"]


def plain_embed() -> EmbedWorker:
    """Of a model with fixed vectors, and prompts for documents and queries only."""
    worker = EmbedWorker().without_instructions()
    worker.min_dimensions, worker.input_types = worker.dimensions, [DOCUMENT, QUERY]
    return worker


def logit_rerank() -> RerankWorker:
    worker = RerankWorker().without_instructions()
    worker.score_type = rerank_pb2.SCORE_TYPE_LOGIT
    return worker


@pytest.fixture
async def gateway(redis8: RedisProcess) -> AsyncIterator[Running]:
    async with running(redis8.url, embed=plain_embed(), rerank=logit_rerank()) as plain:
        yield plain


async def refused(call: Awaitable[object]) -> list[str]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return rich_status(failed.value).fields


def inline(**fields: object) -> pb.SearchRequest:
    documents = pb.InlineDocuments(documents=[pb.Document(text=text) for text in FRUIT])
    return pb.SearchRequest(query="red apple", documents=documents, **fields)  # type: ignore[arg-type]


async def test_the_gateway_tells_what_the_workers_tell(gateway: Running) -> None:
    embed = await gateway.embed.GetModel(embed_pb2.GetModelRequest())
    assert (list(embed.input_types), embed.accepts_instructions) == ([DOCUMENT, QUERY], False)
    assert (embed.min_dimensions, embed.dimensions, embed.default_instruction) == (96, 96, "")
    rerank = await gateway.rerank.GetModel(rerank_pb2.GetModelRequest())
    assert (rerank.accepts_instructions, rerank.score_type) == (False, rerank_pb2.SCORE_TYPE_LOGIT)


async def test_what_the_model_has_not_is_refused_before_a_worker_is_asked(gateway: Running) -> None:
    async def stream() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        options = embed_pb2.EmbedOptions(input_type=QUERY, instruction="find", dimensions=48)
        yield embed_pb2.EmbedStreamRequest(options=options, items=[embed_pb2.EmbedStreamItem(id="a", text="a")])

    async def streamed() -> None:
        async for _ in gateway.embed.EmbedStream(stream()):
            pass

    request = embed_pb2.EmbedRequest(
        texts=["a"], input_type=embed_pb2.INPUT_TYPE_SYMMETRIC, instruction="find", dimensions=48
    )
    assert sorted(await refused(gateway.embed.Embed(request))) == ["dimensions", "input_type", "instruction"]
    assert sorted(await refused(streamed())) == ["options.dimensions", "options.instruction"]
    scored = rerank_pb2.RerankRequest(query="a", documents=["a"], instruction="find")
    assert await refused(gateway.rerank.Rerank(scored)) == ["instruction"]
    collection = pb.CreateCollectionRequest(name="docs", dimensions=48)
    assert await refused(gateway.retrieval.CreateCollection(collection)) == ["dimensions"]
    assert await refused(gateway.retrieval.Search(inline(instruction="find"))) == ["instruction"]
    assert not gateway.embed_worker.requests
    assert not gateway.rerank_worker.requests


async def test_texts_are_cached_as_those_of_other_models(gateway: Running) -> None:
    for hit in (False, True):
        for input_type in (DOCUMENT, QUERY):
            response = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["a"], input_type=input_type))
            assert response.results[0].cache_hit is hit
    assert [request.input_type for request in gateway.embed_worker.requests] == [DOCUMENT, QUERY]
    assert not any(request.HasField("instruction") for request in gateway.embed_worker.requests)


async def test_a_search_needs_no_instructions(gateway: Running) -> None:
    found = await gateway.retrieval.Search(inline())
    assert not found.degraded
    await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="docs"))
    await gateway.upsert("docs", *(pb.Document(id=text, text=text) for text in FRUIT))
    stored = pb.SearchRequest(query="red apple", collection=pb.CollectionSource(name="docs"))
    assert [hit.text for hit in (await gateway.retrieval.Search(stored)).hits] == [hit.text for hit in found.hits]
    stored.instruction = "find"
    assert await refused(gateway.retrieval.Search(stored)) == ["instruction"]
    assert {request.input_type for request in gateway.embed_worker.requests} == {DOCUMENT, QUERY}


async def test_logits_rank_and_are_cut_as_they_are_but_blend_as_probabilities(gateway: Running) -> None:
    request = rerank_pb2.RerankRequest(query="red apple", documents=FRUIT)
    for hit in (False, True):
        results = (await gateway.rerank.Rerank(request)).results
        assert [result.cache_hit for result in results] == [hit] * len(FRUIT)
        assert [result.score for result in results] == [result.logit for result in results]
    assert [results[0].score, results[-1].score] == pytest.approx([3 - 0.009, -3 - 0.013])
    request.min_score = results[1].score
    assert len((await gateway.rerank.Rerank(request)).results) == 2
    found = await gateway.retrieval.Search(inline(retrieval_weight=0.25))
    for ranked in found.hits:
        assert ranked.rerank_score == pytest.approx(1 / (1 + math.exp(-ranked.rerank_logit)))
        assert ranked.score == pytest.approx(0.25 * ranked.retrieval_score + 0.75 * ranked.rerank_score)
    few = await gateway.retrieval.Search(inline(retrieval_weight=0.25, min_score=found.hits[0].score))
    assert [ranked.text for ranked in few.hits] == ["red apple"]


async def test_an_instruction_is_refused_if_one_stage_takes_none_and_runs() -> None:
    async with running(rerank=logit_rerank()) as gateway:
        assert await refused(gateway.retrieval.Search(inline(instruction="find"))) == ["instruction"]
        assert not gateway.rerank_worker.requests
        skipped = await gateway.retrieval.Search(inline(instruction="find", rerank=pb.RERANK_POLICY_SKIP))
        assert len(skipped.hits) == len(FRUIT)
    async with running(embed=plain_embed()) as gateway:
        assert await refused(gateway.retrieval.Search(inline(instruction="find"))) == ["instruction"]
        assert not gateway.rerank_worker.requests
