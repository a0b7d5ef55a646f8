"""Answers that do not fit into one message: refused by name, with what to ask for, or sent in several."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest

from services.api.vectors import decode
from tests.support.collections import create, get, read, search
from tests.support.gateway import Running, running
from tests.support.redis import RedisProcess
from tests.support.serving import failure, rich_status
from tests.support.workers import EmbedWorker
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

LIMIT = 1 << 16


async def refused(call: Awaitable[object], message: str) -> str:
    seen = rich_status(await failure(call))
    assert (seen.code, seen.reason, seen.fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", [message])
    assert str(LIMIT) in seen.status.message
    return str(seen.status.message)


@pytest.fixture
async def gateway(redis8: RedisProcess) -> AsyncIterator[Running]:
    async with running(redis8.url, max_message_bytes=LIMIT) as made:
        yield made


async def test_documents_that_are_too_large_together(gateway: Running) -> None:
    await create(gateway)
    for n in range(4):
        [result] = await gateway.upsert("docs", pb.Document(id=str(n), text=f"text {n} " + "x" * 30_000))
        assert result.outcome == pb.UPSERT_OUTCOME_CREATED
    said = await refused(read(gateway, "0", "1", "2", "3"), "winnow.retrieval.v1.GetDocumentsResponse")
    assert "fewer texts, documents or ids" in said
    assert [len(result.document.text) for result in await read(gateway, "0", "1")] == [30_007] * 2
    options: dict[str, Any] = {"rerank": pb.RERANK_POLICY_SKIP, "candidates": 4}
    said = await refused(search(gateway, "docs", **options), "winnow.retrieval.v1.SearchResponse")
    assert "return_text" in said
    assert len((await search(gateway, "docs", return_text=False, **options)).hits) == 4


async def test_a_collection_with_many_names(gateway: Running) -> None:
    await create(gateway)
    for n in range(1000):
        await gateway.retrieval.SetAlias(pb.SetAliasRequest(alias=f"{n:04}" + "a" * 60, collection="docs"))
    await refused(get(gateway), "winnow.retrieval.v1.GetCollectionResponse")
    listed = gateway.retrieval.ListCollections(pb.ListCollectionsRequest())
    assert "page_size" in await refused(listed, "winnow.retrieval.v1.ListCollectionsResponse")


async def test_vectors_that_are_too_many_for_one_answer(gateway: Running) -> None:
    texts = [f"text {n}" for n in range(256)]
    for encoding in (embed_pb2.ENCODING_FLOAT_LIST, embed_pb2.ENCODING_FLOAT32):
        for _ in range(3):  # computed, from the cache, and as it was written before
            call = gateway.embed.Embed(embed_pb2.EmbedRequest(texts=texts, encoding=encoding))
            assert "fewer texts" in await refused(call, "winnow.embed.v1.EmbedResponse")
    answer = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=texts, encoding=embed_pb2.ENCODING_BINARY))
    assert len(answer.results) == 256


async def test_documents_that_are_scored_and_sent_back(gateway: Running) -> None:
    documents = ["a b c d e f"] * 2048
    request = rerank_pb2.RerankRequest(query="a", documents=documents, return_documents=True)
    assert "return_documents" in await refused(gateway.rerank.Rerank(request), "winnow.rerank.v1.RerankResponse")
    request.return_documents = False
    assert len((await gateway.rerank.Rerank(request)).results) == 2048


async def test_a_streams_answers_come_in_as_many_messages_as_they_need() -> None:
    async with running(embed=EmbedWorker(dimensions=1024), max_message_bytes=LIMIT) as gateway:
        items = [embed_pb2.EmbedStreamItem(id=str(n), text=f"text {n}") for n in range(64)]
        call = gateway.embed.EmbedStream(iter([embed_pb2.EmbedStreamRequest(items=items)]))
        responses = [response async for response in call]
        results = [result for response in responses for result in response.results]
        assert sorted(int(result.id) for result in results) == list(range(64))
        assert {decode(result.result.embedding).shape for result in results} == {(1024,)}
        assert max(response.ByteSize() for response in responses) <= LIMIT


async def test_answers_of_a_worker_fit_into_what_the_gateway_reads() -> None:
    """64 vectors of 1024 values are a quarter of a MiB: the gateway asks for fewer at a time."""
    worker = EmbedWorker(dimensions=1024)
    async with running(embed=worker, max_message_bytes=LIMIT) as gateway:
        request = embed_pb2.EmbedRequest(texts=[f"text {n}" for n in range(64)], encoding=embed_pb2.ENCODING_BINARY)
        answer = await gateway.embed.Embed(request)
    assert {result.WhichOneof("outcome") for result in answer.results} == {"embedding"}
    assert max(len(request.texts) for request in worker.requests) < 16


async def test_an_upserts_answers_come_in_as_many_messages_as_they_need(gateway: Running) -> None:
    await create(gateway)
    # Ids are echoed, each with an error that names it.
    documents = [pb.Document(id="i" * 500 + str(n), text="t", metadata_json="{") for n in range(64)]
    results = await gateway.upsert("docs", *documents)
    assert [result.error.code for result in results] == [grpc.StatusCode.INVALID_ARGUMENT.value[0]] * 64


async def test_an_answer_of_a_worker_that_is_too_large_is_not_told_as_load() -> None:
    """2,048 errors, each with its details, are more than this gateway reads in one message."""
    request = rerank_pb2.RerankRequest(query="a", documents=[f"NAN {n}" for n in range(2048)])
    async with running(max_message_bytes=LIMIT) as gateway:
        error = rich_status(await failure(gateway.rerank.Rerank(request)))
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
