"""RerankService at the wire, over a real engine."""

import json
import math
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from services.rerank.model_card import FILE
from tests.support.serving import details, rich_status
from tests.support.tiny import MAX_TOKENS, ServedWorker, Tiny, held, reranking, slowed, until_queued
from winnow.common.v1 import common_pb2
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc

CODES = grpc.StatusCode
DOCUMENTS = ["Beijing", "", "gravity is a force", "the capital of China is Beijing", "Beijing"]


@pytest.fixture
async def worker(tiny: Tiny) -> AsyncIterator[ServedWorker]:
    async with reranking(tiny) as served:
        yield served


@pytest.fixture
def stub(worker: ServedWorker) -> "rerank_pb2_grpc.RerankServiceAsyncStub":
    return rerank_pb2_grpc.RerankServiceStub(worker.channel)


def request(
    documents: Sequence[str] = DOCUMENTS, query: str = "what is the capital of China", **fields: Any
) -> rerank_pb2.RerankRequest:
    return rerank_pb2.RerankRequest(query=query, documents=documents, **fields)


async def test_results_are_sorted_and_complete(stub: "rerank_pb2_grpc.RerankServiceAsyncStub") -> None:
    response = await stub.Rerank(request(), timeout=30)
    results = response.results
    assert sorted(result.index for result in results) == list(range(len(DOCUMENTS)))
    assert [(-r.logit, r.index) for r in results] == sorted((-r.logit, r.index) for r in results)
    for result in results:
        assert result.score == pytest.approx(1 / (1 + math.exp(-result.logit)))
        assert result.tokens > 48
        assert not result.HasField("document")
        assert not result.truncated
    assert not response.errors
    assert response.usage.input_tokens == sum(result.tokens for result in results)
    assert response.usage.cache_misses == len(DOCUMENTS)
    assert 0 < response.timings.forward_ms <= response.timings.total_ms
    assert response.model == (await stub.GetModel(rerank_pb2.GetModelRequest(), timeout=10)).model


async def test_equal_documents_rank_by_index_and_score_as_alone(stub: "rerank_pb2_grpc.RerankServiceAsyncStub") -> None:
    logits = {r.index: r.logit for r in (await stub.Rerank(request(), timeout=30)).results}
    for index, document in enumerate(DOCUMENTS):
        (alone,) = (await stub.Rerank(request([document]), timeout=30)).results
        assert alone.logit == pytest.approx(logits[index], abs=1e-4)


async def test_top_n_min_score_and_documents(stub: "rerank_pb2_grpc.RerankServiceAsyncStub") -> None:
    everything = (await stub.Rerank(request(), timeout=30)).results
    best = (await stub.Rerank(request(top_n=2, return_documents=True), timeout=30)).results
    assert [r.index for r in best] == [r.index for r in everything[:2]]
    assert [r.document for r in best] == [DOCUMENTS[r.index] for r in best]
    third = everything[2].score
    good = (await stub.Rerank(request(min_score=third - 1e-9), timeout=30)).results
    assert {r.index for r in good} >= {r.index for r in everything[:3]}
    assert all(r.score >= third - 1e-9 for r in good)
    assert len((await stub.Rerank(request(min_score=1.0, top_n=3), timeout=30)).results) == 0
    assert len((await stub.Rerank(request(top_n=100), timeout=30)).results) == len(DOCUMENTS)


async def test_an_instruction_counts_and_its_default_is_the_models(
    stub: "rerank_pb2_grpc.RerankServiceAsyncStub",
) -> None:
    default = (await stub.GetModel(rerank_pb2.GetModelRequest(), timeout=10)).default_instruction

    async def logit(**fields: Any) -> float:
        return (await stub.Rerank(request(["Beijing"], **fields), timeout=30)).results[0].logit

    assert await logit(instruction=default) == pytest.approx(await logit(), abs=1e-5)
    assert abs(await logit(instruction="Find rivers.") - await logit()) > 1e-3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"query": ""}, ["query"]),
        ({"query": "  "}, ["query"]),
        ({"query": "word " * 1000}, ["query"]),
        ({"documents": []}, ["documents"]),
        ({"documents": ["x"] * 2049}, ["documents"]),
        ({"documents": ["x"] * 100_000}, ["documents"]),
        ({"instruction": ""}, ["instruction"]),
        ({"top_n": 0}, ["top_n"]),
        ({"min_score": -0.1}, ["min_score"]),
        ({"min_score": 1.1}, ["min_score"]),
        ({"min_score": math.nan}, ["min_score"]),
        ({"truncation": 99}, ["truncation"]),
        ({"priority": 99}, ["priority"]),
        ({"max_tokens": 127}, ["max_tokens"]),
        ({"max_tokens": MAX_TOKENS + 1}, ["max_tokens"]),
        ({"query": "", "documents": [], "top_n": 0}, ["documents", "query", "top_n"]),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_wrong_request_names_its_fields(
    stub: "rerank_pb2_grpc.RerankServiceAsyncStub", fields: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Rerank(request(**fields), timeout=30)
    seen = rich_status(error.value)
    assert (seen.code, seen.reason) == (CODES.INVALID_ARGUMENT, "INVALID_FIELD")
    assert sorted(seen.fields) == named


async def test_a_long_document_is_cut_and_said_so(stub: "rerank_pb2_grpc.RerankServiceAsyncStub") -> None:
    long = "the capital of China is Beijing " * (1 << 15)
    response = await stub.Rerank(request(["Beijing", long]), timeout=50)
    by_index = {result.index: result for result in response.results}
    assert (by_index[0].truncated, by_index[1].truncated, by_index[1].tokens) == (False, True, MAX_TOKENS)
    (head,) = (await stub.Rerank(request([long[:4000]]), timeout=30)).results
    assert head.logit == pytest.approx(by_index[1].logit, abs=1e-4)


async def test_too_long_under_error_fails_alone(stub: "rerank_pb2_grpc.RerankServiceAsyncStub") -> None:
    documents = ["word " * 1000, "Beijing", "word " * 1000, "gravity"]
    response = await stub.Rerank(request(documents, truncation=common_pb2.TRUNCATION_ERROR), timeout=30)
    assert [error.index for error in response.errors] == [0, 2]
    for error in response.errors:
        (bad,) = details(error.error, error_details_pb2.BadRequest)
        assert [v.field for v in bad.field_violations] == [f"documents[{error.index}]"]
        assert error.error.code == CODES.INVALID_ARGUMENT.value[0]
    alone = (await stub.Rerank(request(["Beijing", "gravity"]), timeout=30)).results
    assert {r.index: pytest.approx(r.logit, abs=1e-4) for r in response.results} == {
        {0: 1, 1: 3}[r.index]: r.logit for r in alone
    }


async def test_a_document_over_the_byte_limit_fails_alone(tiny: Tiny) -> None:
    async with reranking(tiny, max_text_bytes=8) as served:
        stub = rerank_pb2_grpc.RerankServiceStub(served.channel)
        response = await stub.Rerank(request(["12345678", "123456789", "x"], query="what"), timeout=30)
        assert [error.index for error in response.errors] == [1]
        assert {result.index for result in response.results} == {0, 2}
        nothing = await stub.Rerank(request(["123456789"], query="what"), timeout=30)
        assert not nothing.results
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Rerank(request(["x"], query="123456789"), timeout=30)
        assert rich_status(error.value).fields == ["query"]


async def test_get_model(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "rerank"
    shutil.copytree(tiny.rerank, folder)
    (folder / FILE).write_text(json.dumps({"retrieval_weight": 0.25}))
    for model, weight in ((tiny.rerank, None), (folder, 0.25)):
        async with reranking(type(tiny)(tiny.embed, model)) as served:
            described = await rerank_pb2_grpc.RerankServiceStub(served.channel).GetModel(
                rerank_pb2.GetModelRequest(), timeout=10
            )
        assert described.max_tokens == MAX_TOKENS
        assert described.HasField("recommended_retrieval_weight") == (weight is not None)
        assert described.recommended_retrieval_weight == (weight or 0)


async def test_too_long_a_queue_for_the_deadline_sends_the_call_elsewhere(
    worker: ServedWorker, stub: "rerank_pb2_grpc.RerankServiceAsyncStub"
) -> None:
    with held(worker.worker):
        first = stub.Rerank(request(), timeout=60)
        await until_queued(worker.worker)
        waiting = stub.Rerank(request(["gravity attracts two bodies"] * 100), timeout=60)
        await until_queued(worker.worker, 500)
        slowed(worker.worker, 200.0)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Rerank(request(["Beijing"]), timeout=5)
        seen = rich_status(error.value)
        assert (seen.code, seen.reason) == (CODES.UNAVAILABLE, "REPLICA_FULL")
        assert seen.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Rerank(request(["gravity attracts two bodies"] * 200), timeout=2)
        seen = rich_status(error.value)
        assert (seen.code, seen.reason) == (CODES.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
    assert len((await first).results) == len(DOCUMENTS)
    assert len((await waiting).results) == 100
