"""Embed and Rerank through the gateway: computed once, and a hit is the same bytes as a miss."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.rpc import code_pb2

from services.api.vectors import decode
from tests.support.gateway import Running, flushed, running
from tests.support.redis import RedisProcess, redis_server, valkey_binary
from tests.support.vectors import TEXTS, request
from tests.support.waiting import until
from tests.support.workers import EmbedWorker
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2

ENCODINGS = [value for value in embed_pb2.Encoding.values() if value]


def answers(response: embed_pb2.EmbedResponse) -> list[bytes]:
    """Everything but whether it was a hit."""
    plain = []
    for result in response.results:
        copy = embed_pb2.EmbedResult()
        copy.CopyFrom(result)
        copy.cache_hit = False
        plain.append(copy.SerializeToString(deterministic=True))
    return plain


def waiters(gateway: Running) -> int:
    """Callers that wait for something in flight."""
    return sum(flight.waiters for flight in set(gateway.gateway._embedder._cached._single_flight._by_key.values()))


@pytest.fixture(params=["redis", "valkey"])
def any_server(request: pytest.FixtureRequest) -> Iterator[RedisProcess]:
    with redis_server(binary=valkey_binary() if request.param == "valkey" else None) as server:
        yield server


async def test_the_second_time_it_is_a_hit_from_redis_without_workers(any_server: RedisProcess) -> None:
    async with running(any_server.url) as first:
        missed = await first.embed.Embed(request())
        scored = await first.rerank.Rerank(rerank_pb2.RerankRequest(query="alpha", documents=TEXTS))
        await flushed(first)
    assert [result.cache_hit for result in missed.results] == [False] * 5
    assert (missed.usage.cache_hits, missed.usage.cache_misses) == (0, 5)

    async with running(any_server.url) as second:  # another process would be no different: its LRU is empty
        await second.embed.GetModel(embed_pb2.GetModelRequest())
        await second.rerank.GetModel(rerank_pb2.GetModelRequest())
        await second.stop_workers()
        hit = await second.embed.Embed(request())
        again = await second.rerank.Rerank(rerank_pb2.RerankRequest(query="alpha", documents=TEXTS))
        assert second.embed_worker.texts == second.rerank_worker.documents == []
    assert [result.cache_hit for result in hit.results] == [True] * 5
    assert (hit.usage.cache_hits, hit.usage.input_tokens) == (5, missed.usage.input_tokens)
    assert answers(hit) == answers(missed)
    assert all(result.cache_hit for result in again.results)
    assert [(r.index, r.logit, r.score, r.tokens) for r in again.results] == [
        (r.index, r.logit, r.score, r.tokens) for r in scored.results
    ]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=embed_pb2.Encoding.Name)
async def test_hit_and_miss_are_the_same_bytes(redis8: RedisProcess, encoding: int) -> None:
    texts = [f"text number {number}" for number in range(40)]
    async with running(redis8.url) as gateway:
        for dimensions in (None, 32, 33, 64, 95, 96):
            wanted = request(texts, encoding=encoding, dimensions=dimensions)
            missed = [await gateway.embed.Embed(request([text], encoding=encoding, dimensions=dimensions))
                      for text in texts]  # fmt: skip
            hit = await gateway.embed.Embed(wanted)
            assert answers(hit) == [answer for one in missed for answer in answers(one)]
            assert all(result.cache_hit for result in hit.results)
            assert hit.results[0].embedding.dimensions == (dimensions or 96)
            hot = await gateway.embed.Embed(wanted)  # from here on it is a concatenation of ready-made bytes
            assert hot.results == hit.results
            assert (hot.model, hot.usage) == (hit.model, hit.usage)
            some = await gateway.embed.Embed(request([texts[3], texts[0], texts[3]], encoding=encoding,
                                                     dimensions=dimensions))  # fmt: skip
            assert list(some.results) == [hit.results[3], hit.results[0], hit.results[3]]
            with redis8.client() as client:  # from Redis, in another process
                assert client.dbsize() >= 1
            texts = [f"{text}, again" for text in texts]


async def test_ready_made_answers_differ_by_every_option(redis8: RedisProcess) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"dimensions": 64},
        {"encoding": embed_pb2.ENCODING_INT8},
        {"input_type": embed_pb2.INPUT_TYPE_QUERY},
        {"input_type": embed_pb2.INPUT_TYPE_QUERY, "instruction": "other"},
        {"truncation": common_pb2.TRUNCATION_START},
        {"max_tokens": 8},
    ]
    async with running(redis8.url) as gateway:
        first = [answers(await gateway.embed.Embed(request(["some longer text"], **one))) for one in options]
        for _ in range(3):
            again = [answers(await gateway.embed.Embed(request(["some longer text"], **one))) for one in options]
            assert again == first
        gateway.embed_worker.fingerprint = "embed-2"
        await gateway.embed.Embed(request(["tells the gateway of the new model"]))
        changed = await gateway.embed.Embed(request(["some longer text"]))
        assert changed.model.fingerprint == "embed-2"
        assert answers(changed) != first[0]


async def test_rounding_keeps_the_direction(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        exact_request = request(["some words"], input_type=embed_pb2.INPUT_TYPE_DOCUMENT)
        [exact] = (await gateway.embed_worker.answer(exact_request)).results
        for _ in range(2):
            [served] = (await gateway.embed.Embed(request(["some words"]))).results
            assert float(decode(exact.embedding) @ decode(served.embedding)) >= 0.99999


async def test_tokens_and_truncation_survive_a_hit(redis8: RedisProcess) -> None:
    async with running(redis8.url, embed=EmbedWorker(max_tokens=16), cache_local_bytes=0) as gateway:
        for hit in (False, True):
            wanted = request(["x" * 100, "short"])
            results = (await gateway.embed.Embed(wanted)).results
            assert [(r.tokens, r.truncated, r.cache_hit) for r in results] == [(16, True, hit), (5, False, hit)]
            await flushed(gateway)


async def test_a_thousand_identical_texts_in_flight_cost_one_forward(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await gateway.embed.GetModel(embed_pb2.GetModelRequest())
        gateway.embed_worker.gate = asyncio.Event()
        calls = [gateway.embed.Embed(request(["the same"])) for _ in range(1000)]
        await gateway.embed_worker.waiting.wait()
        await until(lambda: waiters(gateway) == len(calls))
        gateway.embed_worker.gate.set()
        responses = await asyncio.gather(*calls)
        assert gateway.embed_worker.texts == ["the same"]
        assert len({response.results[0].embedding.data for response in responses}) == 1


async def test_a_caller_that_hangs_up_does_not_fail_the_others(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        gateway.embed_worker.gate = asyncio.Event()
        leader = gateway.embed.Embed(request(["the same"]))
        await gateway.embed_worker.waiting.wait()
        follower = gateway.embed.Embed(request(["the same"]))
        await until(lambda: waiters(gateway) == 2)
        leader.cancel()
        gateway.embed_worker.gate.set()
        assert (await follower).results[0].tokens == 8
        assert gateway.embed_worker.texts == ["the same"]


async def test_the_last_caller_to_hang_up_cancels_the_work(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        gateway.embed_worker.gate = asyncio.Event()
        call = gateway.embed.Embed(request(["nobody wants this"]))
        await gateway.embed_worker.waiting.wait()
        call.cancel()
        await until(lambda: gateway.embed_worker.cancelled)


@pytest.mark.parametrize("damage", [
    lambda value: value[:-1], lambda value: b"", lambda value: value[:10] + b"\x00\x01" + value[12:],
    lambda value: bytes((value[0] + 1,)) + value[1:], lambda value: b"another program's value",
])  # fmt: skip
async def test_a_value_that_is_not_ours_is_a_miss(redis8: RedisProcess, damage: Callable[..., Any]) -> None:
    async with running(redis8.url, cache_local_bytes=0) as gateway:
        good = await gateway.embed.Embed(request(["text"]))
        await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="text", documents=["text"]))
        await flushed(gateway)
        with redis8.client() as client:
            keys = client.keys("winnow:[es]:*")
            assert len(keys) == 2
            assert all(client.ttl(key) > 0.8 * 30 * 86400 for key in keys)
            for key in keys:
                client.set(key, damage(client.get(key)))
        again = await gateway.embed.Embed(request(["text"]))
        scored = await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="text", documents=["text"]))
        assert answers(again) == answers(good)
        assert not again.results[0].cache_hit
        assert not scored.results[0].cache_hit
        assert gateway.embed_worker.texts == gateway.rerank_worker.documents == ["text"] * 2


async def test_a_key_of_another_type_is_a_miss(redis8: RedisProcess) -> None:
    async with running(redis8.url, cache_local_bytes=0) as gateway:
        await gateway.embed.Embed(request(["text"]))
        await flushed(gateway)
        with redis8.client() as client:
            [key] = client.keys("winnow:e:*")
            client.delete(key)
            client.lpush(key, "a list")
        assert not (await gateway.embed.Embed(request(["text"]))).results[0].cache_hit


async def test_nan_is_an_error_in_its_place_and_never_written(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        for _ in range(2):
            results = (await gateway.embed.Embed(request(["good", "NAN", "fine"]))).results
            assert [result.WhichOneof("outcome") for result in results] == ["embedding", "error", "embedding"]
            assert results[1].error.code == code_pb2.INTERNAL
            await flushed(gateway)
        with redis8.client() as client:
            assert len(client.keys("winnow:e:*")) == 2
        scored = await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="good", documents=["NAN", "good"]))
        assert [(e.index, e.error.code) for e in scored.errors] == [(0, code_pb2.INTERNAL)]
        assert [r.index for r in scored.results] == [1]


async def test_a_text_that_is_too_long_fails_alone_under_its_own_index(redis8: RedisProcess) -> None:
    async with running(redis8.url, embed=EmbedWorker(max_tokens=16), embed_split_items=2) as gateway:
        wanted = request(["a", "b", "c", "x" * 17, "d"], truncation=common_pb2.TRUNCATION_ERROR)
        results = (await gateway.embed.Embed(wanted)).results
        assert [result.WhichOneof("outcome") for result in results] == ["embedding"] * 3 + ["error", "embedding"]
        assert results[3].error.code == code_pb2.INVALID_ARGUMENT
        assert results[3].tokens == 17
        assert "texts[3]" in results[3].error.message
        assert b"texts[3]" in results[3].error.SerializeToString()
        assert b"texts[1]" not in results[3].error.SerializeToString()


async def test_tenants_with_different_salts_share_nothing(redis8: RedisProcess) -> None:
    for salt in ("one", "two", "one"):
        async with running(redis8.url, cache_salt=salt) as gateway:
            response = await gateway.embed.Embed(request(["text"]))
            await flushed(gateway)
            computed = gateway.embed_worker.texts
        assert response.results[0].cache_hit == (computed == [])
    with redis8.client() as client:
        assert len(client.keys("winnow:e:*")) == 2


async def test_defaults_and_what_they_stand_for_share_an_entry(redis8: RedisProcess) -> None:
    worker = EmbedWorker()
    async with running(redis8.url, embed=worker) as gateway:
        model = await gateway.embed.GetModel(embed_pb2.GetModelRequest())
        await gateway.embed.Embed(request(["text"], input_type=embed_pb2.INPUT_TYPE_QUERY))
        spelt_out = request(["text"], input_type=embed_pb2.INPUT_TYPE_QUERY, instruction=model.default_instruction,
                            max_tokens=model.max_tokens, truncation=common_pb2.TRUNCATION_END)  # fmt: skip
        assert (await gateway.embed.Embed(spelt_out)).results[0].cache_hit
        other = request(["text"], input_type=embed_pb2.INPUT_TYPE_QUERY, instruction="Find its opposite")
        assert not (await gateway.embed.Embed(other)).results[0].cache_hit
        assert not (await gateway.embed.Embed(request(["text"]))).results[0].cache_hit


async def test_only_missing_pairs_are_scored(redis8: RedisProcess) -> None:
    async with running(redis8.url) as gateway:
        await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="a b", documents=["a", "b"]))
        response = await gateway.rerank.Rerank(
            rerank_pb2.RerankRequest(query="a b", documents=["a b", "b", "c"], return_documents=True, top_n=2)
        )
        assert gateway.rerank_worker.documents == ["a", "b", "a b", "c"]
        assert [(r.index, r.document, r.cache_hit) for r in response.results] == [(0, "a b", False), (1, "b", True)]
        assert (response.usage.cache_hits, response.usage.cache_misses) == (1, 2)
        await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="a b", documents=["a"], instruction="other"))
        assert gateway.rerank_worker.documents[4:] == ["a"]


async def test_the_score_cache_can_be_turned_off(redis8: RedisProcess) -> None:
    async with running(redis8.url, score_cache=False) as gateway:
        for _ in range(2):
            await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="a", documents=["a"]))
        assert gateway.rerank_worker.documents == ["a", "a"]


async def test_large_lists_are_split_and_keep_their_order(redis8: RedisProcess) -> None:
    texts = [f"text {number}" for number in range(500)]
    async with running(redis8.url, embed_split_items=64) as gateway:
        response = await gateway.embed.Embed(request(texts))
        assert [len(one.texts) for one in gateway.embed_worker.requests] == [64] * 7 + [52]
        single = await gateway.embed.Embed(request([texts[321]]))
        assert single.results[0].embedding == response.results[321].embedding
        # Scores: a split costs the shared prefix again, so short documents stay together.
        await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="text 7", documents=texts))
        assert len(gateway.rerank_worker.requests) == 1
    async with running(redis8.url, rerank_split_bytes=5000) as gateway:
        long_ones = [f"{text} " * 100 for text in texts[:50]]
        scores = await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="text 7", documents=long_ones))
        assert len(gateway.rerank_worker.requests) > 5
        assert scores.results[0].index == 7
        assert sorted(result.index for result in scores.results) == list(range(50))


async def test_without_redis_everything_works() -> None:
    async with running(None) as gateway:
        first = await gateway.embed.Embed(request())
        second = await gateway.embed.Embed(request())
        assert answers(first) == answers(second)
        assert all(result.cache_hit for result in second.results)  # this process remembers
        assert (await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="a", documents=["a"]))).results
