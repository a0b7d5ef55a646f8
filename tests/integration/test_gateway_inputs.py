"""Bad input to the gateway: the right code, the right field, and no neighbour's answer changed."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest

from services.runtime.errors import InvalidField
from tests.support.gateway import running
from tests.support.redis import RedisProcess
from tests.support.serving import rich_status
from tests.support.workers import DEFAULT_INSTRUCTION
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

QUERY = embed_pb2.INPUT_TYPE_QUERY


async def refused(call: Awaitable[object]) -> list[str]:
    """The fields that an INVALID_ARGUMENT names."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return rich_status(failed.value).fields


EMBED = [
    ({"texts": []}, "texts"),
    ({"texts": ["x"] * 2049}, "texts"),
    ({"texts": ["x"] * 100_000}, "texts"),
    ({"dimensions": 0}, "dimensions"),
    ({"dimensions": 31}, "dimensions"),
    ({"dimensions": 97}, "dimensions"),
    ({"dimensions": 2**32 - 1}, "dimensions"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 7}, "max_tokens"),
    ({"max_tokens": 513}, "max_tokens"),
    ({"input_type": 9}, "input_type"),
    ({"encoding": 9}, "encoding"),
    ({"truncation": 9}, "truncation"),
    ({"priority": -1}, "priority"),
    ({"input_type": QUERY, "instruction": ""}, "instruction"),
    ({"instruction": "documents take none"}, "instruction"),
    ({"input_type": QUERY, "instruction": "x" * ((4 << 20) + 1)}, "instruction"),
]


@pytest.mark.parametrize(("wrong", "field"), EMBED, ids=lambda value: value if isinstance(value, str) else "")
async def test_embed(wrong: dict[str, Any], field: str) -> None:
    async with running() as gateway:
        request = embed_pb2.EmbedRequest(**{"texts": ["x"], **wrong})
        assert await refused(gateway.embed.Embed(request)) == [field]
        assert not gateway.embed_worker.requests


@pytest.mark.parametrize(("wrong", "field"), EMBED[3:], ids=lambda value: value if isinstance(value, str) else "")
async def test_embed_stream_options(wrong: dict[str, Any], field: str) -> None:
    async def stream() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        yield embed_pb2.EmbedStreamRequest(options=embed_pb2.EmbedOptions(**wrong))

    async def call() -> None:
        async for _ in gateway.embed.EmbedStream(stream()):
            pass

    async with running() as gateway:
        assert await refused(call()) == [f"options.{field}"]


async def test_embed_stream_items() -> None:
    async def stream(*requests: embed_pb2.EmbedStreamRequest) -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        for request in requests:
            yield request

    async def call(*requests: embed_pb2.EmbedStreamRequest) -> list[embed_pb2.EmbedStreamResult]:
        return [r async for response in gateway.embed.EmbedStream(stream(*requests)) for r in response.results]

    async with running(max_items=3, max_text_bytes=10) as gateway:
        item = embed_pb2.EmbedStreamItem(id="a", text="x")
        late = embed_pb2.EmbedStreamRequest(options=embed_pb2.EmbedOptions(), items=[item])
        assert await refused(call(embed_pb2.EmbedStreamRequest(items=[item]), late)) == ["options"]
        assert await refused(call(embed_pb2.EmbedStreamRequest(items=[item] * 4))) == ["items"]
        long_id = embed_pb2.EmbedStreamItem(id="x" * 513, text="x")
        long_text = embed_pb2.EmbedStreamItem(id="b", text="x" * 11)
        results = await call(embed_pb2.EmbedStreamRequest(items=[item, long_id, long_text]))
        assert [bool(r.result.error.code) for r in results] == [False, True, True]
        assert "items[1].id" in results[1].result.error.message
        assert "items[2].text" in results[2].result.error.message
        assert await call() == []
        assert await call(embed_pb2.EmbedStreamRequest()) == []


async def test_a_text_over_the_limit_fails_alone() -> None:
    async with running(max_text_bytes=10) as gateway:
        results = (await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["a", "é" * 6, "b"]))).results
        assert [result.WhichOneof("outcome") for result in results] == ["embedding", "error", "embedding"]
        assert "texts[1]" in results[1].error.message
        every = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["x" * 11]))
        assert every.results[0].error.code == 3
        ranked = await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="a", documents=["x" * 11, "a"]))
        assert [error.index for error in ranked.errors] == [0]
        assert [result.index for result in ranked.results] == [1]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": " \n"}, "query"),
        ({"query": "x" * ((4 << 20) + 1)}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["x"] * 2049}, "documents"),
        ({"instruction": ""}, "instruction"),
        ({"top_n": 0}, "top_n"),
        ({"min_score": 1.1}, "min_score"),
        ({"min_score": -0.1}, "min_score"),
        ({"min_score": float("nan")}, "min_score"),
        ({"max_tokens": 127}, "max_tokens"),
        ({"max_tokens": 513}, "max_tokens"),
        ({"truncation": 9}, "truncation"),
        ({"priority": 9}, "priority"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_rerank(wrong: dict[str, Any], field: str) -> None:
    async with running() as gateway:
        request = rerank_pb2.RerankRequest(**{"query": "q", "documents": ["x"], **wrong})
        assert await refused(gateway.rerank.Rerank(request)) == [field]
        assert not gateway.rerank_worker.requests


INLINE = pb.InlineDocuments(documents=[pb.Document(text="x")])


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"query": ""}, "query"),
        ({"documents": None}, "source"),
        ({"documents": pb.InlineDocuments()}, "documents.documents"),
        ({"documents": pb.InlineDocuments(documents=[pb.Document(text="x")] * 1001)}, "documents.documents"),
        ({"documents": pb.InlineDocuments(documents=[pb.Document(metadata_json="{")])},
         "documents.documents[0].metadata_json"),
        ({"documents": pb.InlineDocuments(documents=[pb.Document(metadata_json='{"a": NaN}')])},
         "documents.documents[0].metadata_json"),
        ({"documents": pb.InlineDocuments(documents=[pb.Document(id="x" * 513)])}, "documents.documents[0].id"),
        ({"documents": pb.InlineDocuments(documents=[pb.Document(id="a"), pb.Document(id="a")])},
         "documents.documents[1].id"),
        ({"documents": pb.InlineDocuments(documents=[pb.Document(id="1"), pb.Document()])},
         "documents.documents[1].id"),
        ({"documents": pb.InlineDocuments(documents=[pb.Document(text="x" * ((4 << 20) + 1))])},
         "documents.documents[0].text"),
        ({"documents": None, "collection": pb.CollectionSource(name="No!")}, "collection.name"),
        ({"documents": None, "collection": pb.CollectionSource(name="a", filter="x" * 4097)}, "collection.filter"),
        ({"instruction": ""}, "instruction"),
        ({"candidates": 0}, "candidates"),
        ({"candidates": 1001}, "candidates"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": 51}, "top_n"),
        ({"candidates": 5, "top_n": 6}, "top_n"),
        ({"rerank": 7}, "rerank"),
        ({"retrieval_weight": 1.1}, "retrieval_weight"),
        ({"retrieval_weight": float("nan")}, "retrieval_weight"),
        ({"min_score": float("nan")}, "min_score"),
        ({"priority": 7}, "priority"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
async def test_search(wrong: dict[str, Any], field: str) -> None:
    async with running() as gateway:
        fields = {"query": "q", "documents": INLINE, **wrong}
        request = pb.SearchRequest(**{name: value for name, value in fields.items() if value is not None})
        assert await refused(gateway.retrieval.Search(request)) == [field]
        assert not gateway.embed_worker.requests


async def test_every_wrong_field_is_told_at_once() -> None:
    async with running() as gateway:
        request = embed_pb2.EmbedRequest(texts=[], input_type=9, dimensions=1, priority=9)  # type: ignore[arg-type]
        assert await refused(gateway.embed.Embed(request)) == ["texts", "input_type", "dimensions", "priority"]


async def test_documents_and_ids_of_other_calls(redis8: RedisProcess) -> None:
    async with running(redis8.url, max_items=3) as gateway:
        stub: Any = gateway.retrieval
        await stub.CreateCollection(pb.CreateCollectionRequest(name="docs"))
        for call in (stub.GetDocuments, stub.DeleteDocuments):
            request = pb.GetDocumentsRequest if call is stub.GetDocuments else pb.DeleteDocumentsRequest
            assert await refused(call(request(collection="docs"))) == ["ids"]
            assert await refused(call(request(collection="docs", ids=["a"] * 4))) == ["ids"]
            assert await refused(call(request(collection="docs", ids=["a", ""]))) == ["ids[1]"]
            assert await refused(call(request(collection="docs", ids=["x" * 513]))) == ["ids[0]"]


async def test_the_workers_word_on_a_query_that_is_too_long_reaches_the_caller() -> None:
    """The reranker alone knows how many tokens a query has."""
    async with running() as gateway:
        gateway.rerank_worker.problem = InvalidField("query", "leaves no room for a document")
        request = rerank_pb2.RerankRequest(query="long", documents=["a"])
        assert await refused(gateway.rerank.Rerank(request)) == ["query"]
        assert await refused(gateway.retrieval.Search(pb.SearchRequest(query="long", documents=INLINE))) == ["query"]


async def test_lone_surrogates_never_get_in() -> None:
    with pytest.raises((UnicodeEncodeError, ValueError)):
        embed_pb2.EmbedRequest(texts=["\ud800"]).SerializeToString()
    raw = b"\x0a\x03\xed\xa0\x80"  # the same, written by hand
    async with running() as gateway:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        call = gateway.served.channel.unary_unary("/winnow.embed.v1.EmbedService/Embed")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(raw)
        assert failed.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL}
        response = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["fine"]))
        assert response.results[0].tokens == 4


async def test_a_message_over_the_limit(redis8: RedisProcess) -> None:
    async with running(max_message_bytes=1 << 16) as gateway:
        fields = await refused(gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["x" * 70_000])))
        assert fields
        assert (await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["x"]))).results


async def test_defaults_mean_what_the_contract_says() -> None:
    async with running() as gateway:
        await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["x"]))
        request = gateway.embed_worker.requests[-1]
        assert request.input_type == embed_pb2.INPUT_TYPE_DOCUMENT
        assert not request.HasField("instruction")
        assert request.truncation == common_pb2.TRUNCATION_END
        assert request.priority == common_pb2.PRIORITY_INTERACTIVE
        assert request.encoding == embed_pb2.ENCODING_FLOAT32
        await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["x"], input_type=QUERY))
        assert gateway.embed_worker.requests[-1].instruction == DEFAULT_INSTRUCTION
        symmetric = embed_pb2.EmbedRequest(texts=["x"], input_type=embed_pb2.INPUT_TYPE_SYMMETRIC)
        await gateway.embed.Embed(symmetric)
        assert not gateway.embed_worker.requests[-1].HasField("instruction")  # the model has one of its own
