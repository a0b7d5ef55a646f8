"""The gateway in front of an encoder and a cross-encoder (real workers, tiny checkpoints): a migration is a setting."""

from collections.abc import AsyncIterator, Awaitable

import grpc
import pytest

from tests.support import encoders
from tests.support.gateway import Running, running
from tests.support.redis import RedisProcess
from tests.support.serving import failure, rich_status
from tests.support.tiny import Tiny, embedding, reranking
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

QUERY = embed_pb2.INPUT_TYPE_QUERY
TEXTS = ["the capital of China is Beijing", "gravity", "two bodies attract " * 100]
SEARCH = pb.SearchRequest(query="what is gravity", collection=pb.CollectionSource(name="docs"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """An e5 by its prompts, and a cross-encoder under the name of one whose card prints logits."""
    embed, rerank = [tmp_path_factory.mktemp("encoder") / name for name in ("my-e5", "bge-reranker-v2-m3")]
    embed.mkdir()
    rerank.mkdir()
    encoders.describe(encoders.save(embed), prompts={"query": "query: ", "document": "passage: "})
    return Tiny(embed, encoders.save(rerank, "xlm-roberta", classifies=True))


@pytest.fixture
async def gateway(encoder: Tiny, redis8: RedisProcess) -> AsyncIterator[Running]:
    async with (
        embedding(encoder) as embed,
        reranking(encoder) as rerank,
        running(redis8.url, embed_target=embed.address, rerank_target=rerank.address) as made,
    ):
        yield made


async def fields(call: Awaitable[object]) -> list[str]:
    error = await failure(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return sorted(rich_status(error).fields)


async def test_a_model_says_what_it_has_and_the_rest_is_refused(gateway: Running) -> None:
    model = await gateway.embed.GetModel(embed_pb2.GetModelRequest())
    assert (model.accepts_instructions, model.default_instruction) == (False, "")
    assert model.min_dimensions == model.dimensions == encoders.HIDDEN
    assert QUERY in model.input_types
    reranker = await gateway.rerank.GetModel(rerank_pb2.GetModelRequest())
    assert (reranker.accepts_instructions, reranker.score_type) == (False, rerank_pb2.SCORE_TYPE_LOGIT)
    wrong = embed_pb2.EmbedRequest(texts=["x"], input_type=QUERY, instruction="find", dimensions=32)
    assert await fields(gateway.embed.Embed(wrong)) == ["dimensions", "instruction"]
    scored = rerank_pb2.RerankRequest(query="x", documents=["x"], instruction="find")
    assert await fields(gateway.rerank.Rerank(scored)) == ["instruction"]


async def test_a_search_over_a_collection_and_inline_agree(gateway: Running) -> None:
    await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="docs", quantization=pb.QUANTIZATION_NONE))
    documents = [pb.Document(id=str(number), text=text) for number, text in enumerate(TEXTS)]
    results = await gateway.upsert("docs", *documents)
    assert [result.truncated for result in sorted(results, key=lambda result: result.id)] == [False, False, True]
    inline = await gateway.retrieval.Search(
        pb.SearchRequest(query="what is gravity", documents=pb.InlineDocuments(documents=documents))
    )
    stored = await gateway.retrieval.Search(SEARCH)
    assert not inline.degraded
    assert [hit.id for hit in stored.hits] == [hit.id for hit in inline.hits]
    for one, other in zip(inline.hits, stored.hits, strict=True):
        assert other.retrieval_score == pytest.approx(one.retrieval_score, abs=1e-4)
        assert other.rerank_logit == one.rerank_logit
        assert 0 < other.rerank_score < 1
    ranked = await gateway.rerank.Rerank(rerank_pb2.RerankRequest(query="what is gravity", documents=TEXTS))
    assert [str(result.index) for result in ranked.results] == [hit.id for hit in inline.hits]
    assert all(result.cache_hit and result.score == result.logit for result in ranked.results)


async def test_a_collection_of_one_family_refuses_another(encoder: Tiny, tiny: Tiny, redis8: RedisProcess) -> None:
    """The workers behind the gateway are exchanged; nothing but their model differs."""
    async with embedding(tiny) as qwen3, running(redis8.url, embed_target=qwen3.address) as gateway:
        await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="docs", dimensions=encoders.HIDDEN))
        await gateway.upsert("docs", pb.Document(id="a", text=TEXTS[0]))
    async with embedding(encoder) as bert, running(redis8.url, embed_target=bert.address) as gateway:
        error = await failure(gateway.retrieval.Search(SEARCH))
        assert (error.code(), rich_status(error).reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await gateway.upsert("docs", pb.Document(id="b", text=TEXTS[1]))
        assert rich_status(failed.value).reason == "MODEL_MISMATCH"


async def test_the_same_text_is_another_entry_for_each_input_type(gateway: Running) -> None:
    seen = []
    for input_type in (embed_pb2.INPUT_TYPE_DOCUMENT, QUERY):
        first = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["gravity"], input_type=input_type))
        again = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["gravity"], input_type=input_type))
        assert (first.results[0].cache_hit, again.results[0].cache_hit) == (False, True)
        assert again.results[0].embedding == first.results[0].embedding
        seen.append(first.results[0].embedding.data)
    assert seen[0] != seen[1]
