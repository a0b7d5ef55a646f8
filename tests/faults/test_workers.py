"""Bad luck with workers: full, hanging, gone, back again. The caller hears it at once and in the right words."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from services.runtime.errors import DeadlineTooShort, Problem, ReplicaFull
from tests.support.gateway import Running, running
from tests.support.redis import free_port, redis_server
from tests.support.serving import PlainSettings, failure, rich_status, serving
from tests.support.waiting import until, until_available
from tests.support.workers import EmbedWorker
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb


def embed(gateway: Running, text: str = "text", **options: Any) -> Awaitable[embed_pb2.EmbedResponse]:
    return gateway.embed.Embed(embed_pb2.EmbedRequest(texts=[text]), **options)


def rerank(gateway: Running, **options: Any) -> Awaitable[rerank_pb2.RerankResponse]:
    return gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="text", documents=["text"]), **options)


@pytest.mark.parametrize("call", [embed, rerank])
async def test_a_full_pool_is_resource_exhausted_and_must_not_be_retried(call: Callable[..., Any]) -> None:
    async with running() as gateway:
        gateway.embed_worker.problem = gateway.rerank_worker.problem = ReplicaFull(0.02)
        error = await failure(call(gateway))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = rich_status(error)
        assert answer.reason == "OVERLOADED"
        assert answer.trailers["grpc-retry-pushback-ms"] == "-1"
        assert answer.detail(error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0
        tried = len(gateway.embed_worker.requests) + len(gateway.rerank_worker.requests)
        assert tried == 1  # there is no other replica that might have room


@pytest.mark.parametrize("call", [embed, rerank])
async def test_workers_that_were_never_there(call: Callable[..., Any]) -> None:
    async with running(no_embed=True, no_rerank=True) as gateway:
        for options in ({}, {"timeout": 5}):
            began = time.monotonic()
            error = await failure(call(gateway, **options))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert rich_status(error).reason == "UPSTREAM_UNAVAILABLE"
            assert "127.0.0.1" not in str(error.details())
            assert time.monotonic() - began < 3


async def test_a_name_that_does_not_resolve() -> None:
    async with running(embed_target="dns:///no-such-host.invalid:50051") as gateway:
        error = await failure(embed(gateway, timeout=5))
        assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


@pytest.mark.parametrize("call", [embed, rerank])
async def test_a_worker_that_hangs_is_given_up_at_the_deadline(call: Callable[..., Any]) -> None:
    async with running() as gateway:
        await gateway.embed.GetModel(embed_pb2.GetModelRequest())
        await gateway.rerank.GetModel(rerank_pb2.GetModelRequest())
        gateway.embed_worker.gate = gateway.rerank_worker.gate = asyncio.Event()
        began = time.monotonic()
        error = await failure(call(gateway, timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 1.5
        await until(lambda: gateway.embed_worker.cancelled + gateway.rerank_worker.cancelled)  # the worker is told


@pytest.mark.parametrize("call", [embed, rerank])
async def test_without_a_deadline_a_worker_that_hangs_is_given_up_too(call: Callable[..., Any]) -> None:
    async with running(workers_timeout_seconds=0.3) as gateway:
        await gateway.embed.GetModel(embed_pb2.GetModelRequest())
        await gateway.rerank.GetModel(rerank_pb2.GetModelRequest())
        gateway.embed_worker.gate = gateway.rerank_worker.gate = asyncio.Event()
        error = await failure(call(gateway))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_deadline_is_passed_on() -> None:
    seen = []
    async with running() as gateway:
        honest = gateway.embed_worker.Embed

        async def watch(
            request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]
        ) -> embed_pb2.EmbedResponse:
            seen.append(context.time_remaining())
            return await honest(request, context)

        gateway.embed_worker.Embed = watch  # type: ignore[method-assign]
    async with running(embed=gateway.embed_worker) as gateway:
        await embed(gateway, timeout=5)
        assert 0 < seen[0] <= 5.05  # gRPC rounds a timeout up on the wire, by 1 % at most


async def test_a_follower_with_more_time_is_not_bound_by_the_leader() -> None:
    async with running() as gateway:
        await gateway.embed.GetModel(embed_pb2.GetModelRequest())
        gate = gateway.embed_worker.gate = asyncio.Event()
        leader = embed(gateway, timeout=0.3)
        await gateway.embed_worker.waiting.wait()
        follower = embed(gateway, timeout=10)
        assert (await failure(leader)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        gate.set()
        assert len((await follower).results) == 1


async def test_an_interactive_caller_never_waits_for_bulk_work() -> None:
    async with running() as gateway:
        await gateway.embed.GetModel(embed_pb2.GetModelRequest())
        held = gateway.embed_worker.gate = asyncio.Event()
        bulk = gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["text"], priority=common_pb2.PRIORITY_BULK))
        await gateway.embed_worker.waiting.wait()
        gateway.embed_worker.gate = None
        assert len((await embed(gateway)).results) == 1
        held.set()
        await bulk


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (DeadlineTooShort(), grpc.StatusCode.DEADLINE_EXCEEDED),
        (Problem("secret"), grpc.StatusCode.INTERNAL),
        (ValueError("secret"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_other_failures_of_a_worker(problem: Exception, code: grpc.StatusCode) -> None:
    async with running() as gateway:
        gateway.embed_worker.problem = problem
        error = await failure(embed(gateway, timeout=5))
        assert error.code() is code
        if isinstance(problem, ValueError):
            assert b"secret" not in rich_status(error).status.SerializeToString()


async def test_a_worker_that_answers_nonsense() -> None:
    async with running() as gateway:
        await gateway.embed.GetModel(embed_pb2.GetModelRequest())

    class Short(EmbedWorker):
        async def Embed(  # noqa: N802 - the contract's name
            self, request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]
        ) -> embed_pb2.EmbedResponse:
            answer = await super().Embed(request, context)
            answer.results.pop()
            return answer

    async with running(embed=Short()) as gateway:
        error = await failure(embed(gateway))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert rich_status(error).reason == "INTERNAL"


async def test_a_worker_that_goes_and_comes_back() -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = PlainSettings(listen=address)
    async with running(embed_target=address, workers_timeout_seconds=5) as gateway:
        assert (await failure(embed(gateway, timeout=5))).code() is grpc.StatusCode.UNAVAILABLE
        for round_ in range(2):
            async with serving(EmbedWorker(), settings), asyncio.timeout(20):
                await until_available(partial(embed, gateway, f"text {round_}", timeout=5))
            assert (await failure(embed(gateway, f"more {round_}", timeout=5))).code() is grpc.StatusCode.UNAVAILABLE


async def test_two_replicas_share_the_work_and_one_may_die() -> None:
    one, two = EmbedWorker(), EmbedWorker()
    async with serving(one) as first, serving(two) as second:
        target = f"ipv4:{first.address},{second.address}"
        async with running(embed_target=target, embed_split_items=10) as gateway:
            texts = [f"text {number}" for number in range(200)]
            await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=texts))
            assert min(len(one.texts), len(two.texts)) > 50
            first.lifecycle.stop()
            await first.lifecycle.announce()  # draining: NOT_SERVING, and new calls are refused
            for number in range(20):
                await embed(gateway, f"later {number}")


async def test_one_full_replica_is_passed_over() -> None:
    one, two = EmbedWorker(), EmbedWorker()
    one.problem = ReplicaFull(0.01)
    async with (
        serving(one) as first,
        serving(two) as second,
        running(embed_target=f"ipv4:{first.address},{second.address}") as gateway,
    ):
        for number in range(10):
            await embed(gateway, f"text {number}")
        assert len(two.texts) == 10


async def test_replicas_of_different_models_never_mix_in_one_answer() -> None:
    one, two = EmbedWorker("embed-1"), EmbedWorker("embed-2")
    async with serving(one) as first, serving(two) as second:
        target = f"ipv4:{first.address},{second.address}"
        async with running(embed_target=target, embed_split_items=5) as gateway:
            expected = {}
            for model in (one, two):
                for number in range(40):
                    text = f"text {number}"
                    request = embed_pb2.EmbedRequest(
                        texts=[text], input_type=embed_pb2.INPUT_TYPE_DOCUMENT, encoding=embed_pb2.ENCODING_FLOAT16
                    )
                    expected[model.fingerprint, text] = (await model.answer(request)).results[0].embedding.data
            answered = 0
            for start in range(20):
                texts = [f"text {number}" for number in range(start, start + 20)]
                request = embed_pb2.EmbedRequest(
                    texts=texts, input_type=embed_pb2.INPUT_TYPE_DOCUMENT, encoding=embed_pb2.ENCODING_FLOAT16
                )
                [response] = await asyncio.gather(gateway.embed.Embed(request), return_exceptions=True)
                if isinstance(response, grpc.aio.AioRpcError):
                    assert response.code() is grpc.StatusCode.UNAVAILABLE
                    continue
                assert isinstance(response, embed_pb2.EmbedResponse)
                answered += 1
                for text, result in zip(texts, response.results, strict=True):
                    got = decode_16(result.embedding.data)
                    assert got == pytest.approx(decode_16(expected[response.model.fingerprint, text]), abs=2e-3)
            assert answered > 0


def decode_16(data: bytes) -> list[float]:
    import numpy as np

    values: list[float] = np.frombuffer(data, "<f2").astype(float).tolist()
    return values


async def test_an_upsert_bears_with_a_full_pool_and_an_outage() -> None:
    with redis_server() as redis:
        address = f"127.0.0.1:{free_port()}"
        worker = EmbedWorker()
        async with running(redis.url, embed_target=address, stream_retry_seconds=30) as gateway:
            async with serving(worker, PlainSettings(listen=address)), asyncio.timeout(20):
                create = pb.CreateCollectionRequest(name="docs")
                await until_available(lambda: gateway.retrieval.CreateCollection(create))
                worker.problem = ReplicaFull(0.02)
                full = asyncio.create_task(gateway.upsert("docs", pb.Document(id="a", text="a")))
                await until(lambda: len(worker.requests) >= 4)
                assert not full.done()
                worker.problem = None
                assert [result.outcome for result in await full] == [pb.UPSERT_OUTCOME_CREATED]
            away = asyncio.create_task(gateway.upsert("docs", pb.Document(id="b", text="b")))
            await asyncio.wait({away}, timeout=0.5)
            assert not away.done()
            async with serving(worker, PlainSettings(listen=address)), asyncio.timeout(20):
                assert [result.outcome for result in await away] == [pb.UPSERT_OUTCOME_CREATED]


async def test_an_upsert_gives_up_on_an_outage_document_by_document() -> None:
    with redis_server() as redis:
        async with running(redis.url, stream_retry_seconds=0.1) as gateway:
            await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="docs"))
            await gateway.stop_workers()
            results = await gateway.upsert("docs", pb.Document(id="a", text="a"), pb.Document(id="", text="b"))
            assert {result.id: result.error.code for result in results} == {"a": 14, "": 3}


async def test_draining_ends_streams_after_what_they_took_on() -> None:
    with redis_server() as redis:
        async with running(redis.url) as gateway:
            await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="docs"))
            taken = asyncio.Event()

            async def requests() -> AsyncIterator[pb.UpsertDocumentsRequest]:
                yield pb.UpsertDocumentsRequest(collection="docs", documents=[pb.Document(id="a", text="a")])
                await taken.wait()
                await asyncio.Event().wait()  # never ends by itself

            call = gateway.retrieval.UpsertDocuments(requests())
            answers = aiter(call)
            first = await anext(answers)
            assert first.results[0].outcome == pb.UPSERT_OUTCOME_CREATED
            taken.set()
            gateway.served.lifecycle.stop()
            error = await failure(anext(answers))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert rich_status(error).reason == "NOT_READY"
