"""Search: over documents sent along and over collections, whole and degraded."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest

from services.api.vectors import decode
from services.runtime.errors import DeadlineTooShort, Problem, ReplicaFull
from tests.support.gateway import Running, running
from tests.support.redis import RedisProcess
from tests.support.serving import failure, rich_status
from tests.support.workers import EmbedWorker, RerankWorker
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

FRUIT = ["red apple", "green pear", "yellow banana", "red cherry", "blue sky over an apple tree"]


def inline(query: str = "red apple", texts: list[str] = FRUIT, **options: Any) -> pb.SearchRequest:
    documents = [pb.Document(text=text, metadata_json=json.dumps({"n": n})) for n, text in enumerate(texts)]
    return pb.SearchRequest(query=query, documents=pb.InlineDocuments(documents=documents), **options)


def stored(query: str = "red apple", name: str = "fruit", filter: str = "", **options: Any) -> pb.SearchRequest:
    return pb.SearchRequest(query=query, collection=pb.CollectionSource(name=name, filter=filter), **options)


async def fill(gateway: Running, name: str = "fruit", texts: list[str] = FRUIT, **options: Any) -> None:
    await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name=name, **options))
    results = await gateway.upsert(
        name, *(pb.Document(id=f"d{n}", text=text, metadata_json=json.dumps({"n": n})) for n, text in enumerate(texts))
    )
    assert all(result.outcome == pb.UPSERT_OUTCOME_CREATED for result in results)


async def test_inline_scores_are_cosines_and_probabilities() -> None:
    async with running() as gateway:
        found = await gateway.retrieval.Search(inline(top_n=3))
        assert not found.degraded
        assert len(found.hits) == 3
        assert found.hits[0].text == "red apple"
        query = await gateway.embed.Embed(
            embed_pb2.EmbedRequest(texts=["red apple"], input_type=embed_pb2.INPUT_TYPE_QUERY)
        )
        documents = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=FRUIT))
        vector = decode(query.results[0].embedding)
        cosines = [float(vector @ decode(result.embedding)) for result in documents.results]
        for hit in found.hits:
            assert hit.retrieval_score == pytest.approx(cosines[int(hit.id)], abs=1e-5)
            assert hit.retrieval_rank == 1 + sum(other > cosines[int(hit.id)] for other in cosines)
            assert hit.score == hit.rerank_score == pytest.approx(1 / (1 + np.exp(-hit.rerank_logit)))
            assert json.loads(hit.metadata_json) == {"n": int(hit.id)}
        assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
        assert found.embed_model.fingerprint == "embed-1"
        assert found.rerank_model.fingerprint == "rerank-1"
        assert found.embed_usage.cache_misses == 6
        assert found.rerank_usage.cache_misses == 5
        assert found.timings.total_ms >= found.timings.embed_ms > 0
        assert found.timings.rerank_ms > 0


async def test_inline_needs_no_redis_and_the_second_time_no_worker() -> None:
    async with running() as gateway:
        first = await gateway.retrieval.Search(inline())
        await gateway.stop_workers()
        second = await gateway.retrieval.Search(inline())
        assert second.hits == first.hits
        assert (second.embed_usage.cache_hits, second.rerank_usage.cache_hits) == (6, 5)


async def test_collection_end_to_end(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        found = await gateway.retrieval.Search(stored(top_n=2))
        assert [hit.id for hit in found.hits] == ["d0", "d3"]
        assert found.hits[0].text == "red apple"
        assert json.loads(found.hits[0].metadata_json) == {"n": 0}
        assert not found.degraded
        assert found.timings.retrieve_ms > 0
        bare = await gateway.retrieval.Search(stored(return_text=False, return_metadata=False, rerank=3))
        assert all(not hit.HasField("text") and not hit.HasField("metadata_json") for hit in bare.hits)
        assert all(not hit.HasField("rerank_score") for hit in bare.hits)
        assert not bare.HasField("rerank_model")
        assert bare.retrieval_weight == 1.0
        assert [hit.score for hit in bare.hits] == [hit.retrieval_score for hit in bare.hits]


async def test_the_instruction_reaches_both_stages(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        await gateway.retrieval.Search(stored(instruction="Find fruit of this colour"))
        assert gateway.embed_worker.requests[-1].instruction == "Find fruit of this colour"
        assert gateway.rerank_worker.requests[-1].instruction == "Find fruit of this colour"


async def test_candidates_bound_what_is_reranked(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        for request in (stored(candidates=2), inline(candidates=2)):
            assert len((await gateway.retrieval.Search(request)).hits) == 2
        assert [len(request.documents) for request in gateway.rerank_worker.requests] == [2]  # the others: cached


@pytest.mark.parametrize("source", [inline, stored])
async def test_rerank_down_is_degraded_or_unavailable(redis8: RedisProcess, source: Callable[..., Any]) -> None:
    async with running(redis8.url, no_rerank=True) as gateway:
        await fill(gateway)
        found = await gateway.retrieval.Search(source())
        assert found.degraded
        assert [(one.stage, one.reason) for one in found.degradations] == [(pb.STAGE_RERANK, "RERANK_UNAVAILABLE")]
        assert [hit.retrieval_rank for hit in found.hits] == list(range(1, 6))
        assert found.hits[0].text == "red apple"
        assert found.hits[0].score == found.hits[0].retrieval_score
        error = await failure(gateway.retrieval.Search(source(rerank=pb.RERANK_POLICY_REQUIRED)))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert rich_status(error).reason == "UPSTREAM_UNAVAILABLE"
        assert not (await gateway.retrieval.Search(source(rerank=pb.RERANK_POLICY_SKIP))).degraded


@pytest.mark.parametrize(
    ("problem", "reason", "code"),
    [
        (ReplicaFull(0.01), "RERANK_OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED),
        (DeadlineTooShort(), "RERANK_DEADLINE", grpc.StatusCode.DEADLINE_EXCEEDED),
        (Problem("broken"), "RERANK_UNAVAILABLE", grpc.StatusCode.INTERNAL),
    ],
)
async def test_why_rerank_failed(problem: Problem, reason: str, code: grpc.StatusCode) -> None:
    async with running() as gateway:
        gateway.rerank_worker.problem = problem
        found = await gateway.retrieval.Search(inline())
        assert [one.reason for one in found.degradations] == [reason]
        error = await failure(gateway.retrieval.Search(inline(rerank=pb.RERANK_POLICY_REQUIRED)))
        assert error.code() is code


async def test_rerank_that_hangs_is_cut_off_within_the_deadline() -> None:
    async with running() as gateway:
        await gateway.retrieval.Search(inline(rerank=pb.RERANK_POLICY_SKIP))
        gateway.rerank_worker.gate = asyncio.Event()
        began = time.monotonic()
        found = await gateway.retrieval.Search(inline(), timeout=1.0)
        assert time.monotonic() - began < 1.0
        assert [one.reason for one in found.degradations] == ["RERANK_DEADLINE"]
        assert len(found.hits) == 5
        error = await failure(gateway.retrieval.Search(inline(rerank=pb.RERANK_POLICY_REQUIRED), timeout=0.5))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_embed_down_is_unavailable_within_the_deadline(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        await gateway.stop_workers()
        began = time.monotonic()
        error = await failure(gateway.retrieval.Search(stored("never asked before"), timeout=5))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - began < 5


async def test_embed_down_with_inline_documents_they_are_reranked_all_the_same() -> None:
    async with running(no_embed=True) as gateway:
        found = await gateway.retrieval.Search(inline())
        assert [(one.stage, one.reason) for one in found.degradations] == [(pb.STAGE_EMBED, "EMBED_UNAVAILABLE")]
        assert found.hits[0].text == "red apple"
        assert found.retrieval_weight == 0
        assert found.hits[0].score == found.hits[0].rerank_score
        error = await failure(gateway.retrieval.Search(inline(rerank=pb.RERANK_POLICY_SKIP)))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    async with running(no_embed=True, no_rerank=True) as gateway:
        assert (await failure(gateway.retrieval.Search(inline()))).code() is grpc.StatusCode.UNAVAILABLE


async def test_embed_that_hangs_leaves_time_to_rerank() -> None:
    async with running() as gateway:
        await gateway.embed.GetModel(embed_pb2.GetModelRequest())
        gateway.embed_worker.gate = asyncio.Event()
        found = await gateway.retrieval.Search(inline(), timeout=2)
        assert [one.reason for one in found.degradations] == ["EMBED_DEADLINE"]
        assert found.hits[0].text == "red apple"


async def test_single_bad_documents_cost_only_themselves() -> None:
    async with running() as gateway:
        found = await gateway.retrieval.Search(inline("red apple", [*FRUIT, "NAN apple"]))
        assert [one.reason for one in found.degradations] == ["EMBED_PARTIAL"]
        assert len(found.hits) == 5
        gateway.embed_worker.vector = EmbedWorker.vector.__get__(gateway.embed_worker)  # type: ignore[method-assign]
    rerank_only_bad = RerankWorker()
    async with running(rerank=rerank_only_bad) as gateway:
        plain = await gateway.retrieval.Search(inline())

        async def partly(
            request: rerank_pb2.RerankRequest,
            context: grpc.aio.ServicerContext[Any, Any],
            honest: Callable[..., Awaitable[rerank_pb2.RerankResponse]] = rerank_only_bad.Rerank,
        ) -> rerank_pb2.RerankResponse:
            answer = await honest(request, context)
            bad = [result for result in answer.results if result.index == 0]
            for result in bad:
                answer.results.remove(result)
                answer.errors.add(index=0).error.code = 13
            return answer

        rerank_only_bad.Rerank = partly  # type: ignore[method-assign]
    async with running(rerank=rerank_only_bad) as gateway:
        found = await gateway.retrieval.Search(inline())
        assert [one.reason for one in found.degradations] == ["RERANK_PARTIAL"]
        assert {hit.id for hit in found.hits} == {hit.id for hit in plain.hits}
        assert found.hits[-1].text == "red apple"  # the best of the first stage, but it has no score
        assert not found.hits[-1].HasField("rerank_score")
        error = await failure(gateway.retrieval.Search(inline(rerank=pb.RERANK_POLICY_REQUIRED)))
        assert error.code() is grpc.StatusCode.INTERNAL


async def test_where_the_weight_comes_from() -> None:
    async with running(rerank=RerankWorker(weight=0.25)) as gateway:
        recommended = await gateway.retrieval.Search(inline())
        assert recommended.retrieval_weight == 0.25
        for hit in recommended.hits:
            assert hit.score == pytest.approx(0.25 * hit.retrieval_score + 0.75 * hit.rerank_score)
        assert (await gateway.retrieval.Search(inline(retrieval_weight=0.5))).retrieval_weight == 0.5
        assert (await gateway.retrieval.Search(inline(retrieval_weight=0))).retrieval_weight == 0
    async with running(rerank=RerankWorker(weight=0.25), retrieval_weight=0.75) as gateway:
        assert (await gateway.retrieval.Search(inline())).retrieval_weight == 0.75
    async with running() as gateway:
        assert (await gateway.retrieval.Search(inline())).retrieval_weight == 0


async def test_min_score(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        found = await gateway.retrieval.Search(stored(min_score=0.5))
        assert 0 < len(found.hits) < 5
        assert all(hit.score >= 0.5 for hit in found.hits)


@pytest.mark.parametrize(
    ("filter_", "ids"),
    [
        (".n >= 3", {"d3", "d4"}),
        (".n == 1 or .n == 2", {"d1", "d2"}),
        (".n in [0, 4]", {"d0", "d4"}),
        (".missing > 1", set()),
        ('.n > 1 and not (.n == 2)', {"d3", "d4"}),
    ],
)  # fmt: skip
async def test_filters(redis8: RedisProcess, filter_: str, ids: set[str]) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway, shards=3)
        assert {hit.id for hit in (await gateway.retrieval.Search(stored(filter=filter_))).hits} == ids


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("bad", [".n >", "((", "n", ".n == 'x", "'"])
async def test_a_filter_that_does_not_parse_names_the_field(redis8: RedisProcess, bad: str, filled: bool) -> None:
    async with running(redis8.url) as gateway:
        if filled:
            await fill(gateway)
        else:
            await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="fruit"))
        error = await failure(gateway.retrieval.Search(stored(filter=bad)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert rich_status(error).fields == ["collection.filter"]
        assert gateway.embed_worker.texts == (FRUIT if filled else [])  # no model time was spent on it


@pytest.mark.parametrize("ascii_", [True, False])
@pytest.mark.parametrize(
    "filter_",
    ['.city == "München"', '.city == "M\\u00fcnchen"', ".größe == 2", '.["a.b"] in ["say \\"hi\\"", "other"]',
     '.path == "C:\\\\new\\nline"', ".ok == true"],
)  # fmt: skip
async def test_filters_on_any_text(redis8: RedisProcess, filter_: str, ascii_: bool) -> None:
    metadata = {"city": "München", "größe": 2, "a.b": 'say "hi"', "path": "C:\\new\nline", "ok": True}
    written = json.dumps(metadata, ensure_ascii=ascii_)
    async with running(redis8.url) as gateway:
        await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="fruit", shards=2))
        await gateway.upsert(
            "fruit", pb.Document(id="it", text="red", metadata_json=written),
            pb.Document(id="other", text="red", metadata_json='{"city": "Munchen", "größe": 3, "ok": false}'),
        )  # fmt: skip
        [hit] = (await gateway.retrieval.Search(stored(filter=filter_))).hits
        assert (hit.id, hit.metadata_json) == ("it", written)


async def test_a_bad_filter_is_told_in_its_own_words(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
        for filter_, says in (
            ('.größe == "x" and [x]', "near x]"),
            (".a.b == 1", '.["a.b"]'),
            ('.k == "C:\\new\\q"', "write \\\\ for a backslash"),
            (".n == 1\0 and .n == 2", "outside of a string"),
        ):
            error = await failure(gateway.retrieval.Search(stored(filter=filter_)))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert rich_status(error).fields == ["collection.filter"]
            assert says in str(error.details())
            assert "_c3" not in str(error.details())


@pytest.mark.parametrize("quantization", [1, 2, 3])
@pytest.mark.parametrize("dimensions", [32, 96])
async def test_every_quantization_and_width(redis8: RedisProcess, quantization: int, dimensions: int) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway, quantization=quantization, dimensions=dimensions, shards=2)
        found = await gateway.retrieval.Search(stored(rerank=pb.RERANK_POLICY_SKIP))
        query = await gateway.embed.Embed(
            embed_pb2.EmbedRequest(texts=["red apple"], input_type=embed_pb2.INPUT_TYPE_QUERY, dimensions=dimensions)
        )
        documents = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=FRUIT, dimensions=dimensions))
        close = {1: 0.02, 2: 1e-4, 3: 0.6}[quantization]
        for hit in found.hits:
            exact = decode(query.results[0].embedding) @ decode(documents.results[int(hit.id[1])].embedding)
            assert hit.retrieval_score == pytest.approx(float(exact), abs=close)
        assert found.hits[0].id == "d0"


async def test_oversampling_rescores_exactly_what_is_cached(redis8: RedisProcess) -> None:
    async with running(redis8.url, index_oversample=3) as gateway:
        await fill(gateway, quantization=pb.QUANTIZATION_BINARY, dimensions=32)
        found = await gateway.retrieval.Search(stored(rerank=pb.RERANK_POLICY_SKIP, candidates=2))
        exact = await gateway.retrieval.Search(inline(rerank=pb.RERANK_POLICY_SKIP, candidates=2))
        assert [hit.text for hit in found.hits] == [hit.text for hit in exact.hits]
        assert [hit.retrieval_score for hit in found.hits] == pytest.approx(
            [hit.retrieval_score for hit in exact.hits], abs=1e-6
        )
        computed = len(gateway.embed_worker.texts)
    async with running(redis8.url, index_oversample=3, cache_salt="other") as gateway:  # nothing is cached here
        found = await gateway.retrieval.Search(stored(rerank=pb.RERANK_POLICY_SKIP, candidates=2))
        assert len(found.hits) == 2
        assert len(gateway.embed_worker.texts) == 1 < computed  # the query alone


async def test_many_shards_find_what_one_finds(redis8: RedisProcess) -> None:
    words = ["red", "green", "blue", "apple", "pear", "sky", "tree", "sea"]
    texts = [f"{a} {b} {c}" for a in words for b in words for c in words[:3]]
    async with running(redis8.url) as gateway:
        await fill(gateway, "one", texts, shards=1, quantization=pb.QUANTIZATION_NONE)
        await fill(gateway, "many", texts, shards=7, quantization=pb.QUANTIZATION_NONE)
        for query in ("red apple", "sea", "green tree sky"):
            one, many = [
                (await gateway.retrieval.Search(stored(query, name, rerank=3, candidates=20, top_n=20))).hits
                for name in ("one", "many")
            ]
            assert [hit.retrieval_score for hit in many] == pytest.approx(
                [hit.retrieval_score for hit in one], abs=1e-4
            )
            assert len({hit.id for hit in one} ^ {hit.id for hit in many}) <= 2  # ties at the end


async def test_a_collection_of_another_model_is_refused(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await fill(gateway)
    async with running(redis8.url, embed=EmbedWorker("embed-2")) as gateway:
        error = await failure(gateway.retrieval.Search(stored()))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert rich_status(error).reason == "MODEL_MISMATCH"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.upsert("fruit", pb.Document(id="x", text="x"))
        assert rich_status(failed.value).reason == "MODEL_MISMATCH"


async def test_the_model_changes_under_a_running_gateway(redis8: RedisProcess) -> None:
    """Old collections stay searchable while old workers answer; then new vectors never meet old ones."""
    async with running(redis8.url) as gateway:
        await fill(gateway)
        gateway.embed_worker.fingerprint = "embed-2"
        error = await failure(gateway.retrieval.Search(stored("a query that no cache has")))
        assert rich_status(error).reason == "MODEL_MISMATCH"
        await fill(gateway, "fruit-2")
        found = await gateway.retrieval.Search(stored("a query that no cache has", "fruit-2"))
        assert found.embed_model.fingerprint == "embed-2"


async def test_an_empty_collection_gives_no_hits(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="fruit"))
        found = await gateway.retrieval.Search(stored())
        assert not found.hits
        assert not found.degraded
        assert not gateway.rerank_worker.requests


async def test_unknown_collection(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        error = await failure(gateway.retrieval.Search(stored(name="nothing")))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "nothing" in rich_status(error).status.message
