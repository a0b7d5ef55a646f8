"""What a model has: told by workers, obeyed by every check, and assumed of servers that are older than the fields."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from services.api.models import accepts_instructions, scores_are_logits
from services.api.options import EmbedOptions, RerankOptions, embed_options, rerank_options
from services.engine.types import InputType, Score
from services.runtime.errors import InvalidFields
from services.runtime.validation import Check
from services.worker.application import Worker
from tests.support.serving import rich_status
from tests.support.tiny import Tiny, embedding, reranking
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc

DOCUMENT, QUERY, SYMMETRIC = (
    embed_pb2.INPUT_TYPE_DOCUMENT,
    embed_pb2.INPUT_TYPE_QUERY,
    embed_pb2.INPUT_TYPE_SYMMETRIC,
)
LIMITS = common_pb2.Limits(max_items=10, max_text_bytes=1000, max_message_bytes=1 << 20)
PLAIN = embed_pb2.GetModelResponse(
    model=common_pb2.ModelIdentity(name="plain"),
    dimensions=256,
    min_dimensions=256,
    max_tokens=512,
    input_types=[DOCUMENT, QUERY],
    accepts_instructions=False,
)
OLDER = embed_pb2.GetModelResponse(
    dimensions=256, min_dimensions=32, max_tokens=512, default_instruction="find passages"
)
LOGITS = rerank_pb2.GetModelResponse(
    model=common_pb2.ModelIdentity(name="logits"),
    max_tokens=512,
    accepts_instructions=False,
    score_type=rerank_pb2.SCORE_TYPE_LOGIT,
)


def violations(call: Callable[[], object]) -> dict[str, str]:
    """The fields that are refused, and why."""
    with pytest.raises(InvalidFields) as refused:
        call()
    return dict(refused.value.violations)


def embed(model: embed_pb2.GetModelResponse, **fields: Any) -> EmbedOptions:
    options, _ = embed_options(embed_pb2.EmbedRequest(**fields), model, LIMITS, Check())
    return options.resolved(model)


def test_a_plain_model_embeds_documents_and_queries_as_they_are() -> None:
    for input_type in (0, DOCUMENT, QUERY):
        options = embed(PLAIN, input_type=input_type, dimensions=256)
        assert options.instruction is None
        assert not options.request(["x"], embed_pb2.ENCODING_FLOAT32).HasField("instruction")


def test_what_a_model_does_not_have_is_refused_by_field() -> None:
    wrong = violations(lambda: embed(PLAIN, input_type=SYMMETRIC, instruction="find", dimensions=128))
    assert wrong == {
        "input_type": "is INPUT_TYPE_SYMMETRIC; this model (plain) has INPUT_TYPE_DOCUMENT, INPUT_TYPE_QUERY",
        "instruction": "is not accepted by this model (plain); leave it out",
        "dimensions": "is 128; the vectors of this model (plain) have 256 and cannot be cut: leave it out",
    }
    stream = embed_pb2.EmbedOptions(input_type=QUERY, instruction="find")
    assert list(violations(lambda: embed_options(stream, PLAIN, LIMITS, Check("options.")))) == ["options.instruction"]
    assert list(violations(lambda: embed(PLAIN, instruction="find"))) == ["instruction"]  # once, for a document too


def test_an_unknown_input_type_is_refused_once() -> None:
    assert "not a valid InputType" in violations(lambda: embed(PLAIN, input_type=9))["input_type"]


def test_options_made_for_another_model_are_refused_before_a_worker_is_asked() -> None:
    """The gateway resolves them anew for each model that answers."""
    query = EmbedOptions(SYMMETRIC, "compare")
    assert query.resolved(OLDER).instruction == "compare"
    assert set(violations(lambda: query.resolved(PLAIN))) == {"input_type", "instruction"}
    ranking = RerankOptions("q", "judge")
    assert set(violations(lambda: ranking.resolved(LOGITS))) == {"instruction"}


def test_an_older_server_has_everything() -> None:
    assert accepts_instructions(OLDER)
    assert embed(OLDER, input_type=SYMMETRIC, instruction="find", dimensions=32).instruction == "find"
    assert embed(OLDER, input_type=QUERY).instruction == "find passages"
    assert not scores_are_logits(rerank_pb2.GetModelResponse())


def test_the_least_score_is_a_probability_or_any_number() -> None:
    def least(model: rerank_pb2.GetModelResponse, score: float) -> RerankOptions:
        return rerank_options(rerank_pb2.RerankRequest(query="q", documents=["d"], min_score=score), model, LIMITS)

    assert least(LOGITS, -7.5).resolved(LOGITS).instruction is None
    assert "0 to 1 is allowed" in violations(lambda: least(rerank_pb2.GetModelResponse(), -0.5))["min_score"]
    assert violations(lambda: least(LOGITS, float("nan"))) == {"min_score": "is not a number"}


def tell(worker: Worker[Any], **able: Any) -> None:
    """Lets the engine of a worker say that its model is otherwise able."""
    engine = worker.engine()
    engine.info = replace(engine.info, capabilities=replace(engine.info.capabilities, **able), default_instruction="")


async def refused(call: Any) -> list[str]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return rich_status(failed.value).fields


async def test_an_embed_worker_tells_what_its_model_has_and_refuses_the_rest(tiny: Tiny) -> None:
    async with embedding(tiny) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        qwen3 = await stub.GetModel(embed_pb2.GetModelRequest(), timeout=10)
        assert list(qwen3.input_types) == [DOCUMENT, QUERY, SYMMETRIC]
        assert (qwen3.accepts_instructions, qwen3.min_dimensions, qwen3.dimensions) == (True, 32, 64)
        tell(served.worker, input_types=(InputType.QUERY, InputType.DOCUMENT), instructions=False, sliced=False)
        plain = await stub.GetModel(embed_pb2.GetModelRequest(), timeout=10)
        assert list(plain.input_types) == [DOCUMENT, QUERY]
        assert plain.HasField("accepts_instructions")
        assert (plain.accepts_instructions, plain.min_dimensions, plain.dimensions) == (False, 64, 64)
        for fields, named in (
            ({"input_type": SYMMETRIC}, "input_type"),
            ({"input_type": QUERY, "instruction": "find"}, "instruction"),
            ({"dimensions": 32}, "dimensions"),
        ):
            request = embed_pb2.EmbedRequest(texts=["x"], **fields)
            assert await refused(stub.Embed(request, timeout=10)) == [named]
        assert len((await stub.Embed(embed_pb2.EmbedRequest(texts=["x"], input_type=QUERY), timeout=30)).results) == 1


async def test_a_rerank_worker_tells_what_its_scores_are(tiny: Tiny) -> None:
    async with reranking(tiny) as served:
        stub = rerank_pb2_grpc.RerankServiceStub(served.channel)
        qwen3 = await stub.GetModel(rerank_pb2.GetModelRequest(), timeout=10)
        assert (qwen3.accepts_instructions, qwen3.score_type) == (True, rerank_pb2.SCORE_TYPE_PROBABILITY)
        tell(served.worker, instructions=False, score=Score.LOGIT)
        told = await stub.GetModel(rerank_pb2.GetModelRequest(), timeout=10)
        assert (told.accepts_instructions, told.score_type) == (False, rerank_pb2.SCORE_TYPE_LOGIT)
        request = rerank_pb2.RerankRequest(query="gravity", documents=["a force", "Beijing", "gravity"])
        results = (await stub.Rerank(request, timeout=30)).results
        assert [result.score for result in results] == [result.logit for result in results]
        assert results[-1].score < results[0].score
        request.min_score = results[1].score
        assert len((await stub.Rerank(request, timeout=30)).results) == 2
        request.instruction = "find"
        assert await refused(stub.Rerank(request, timeout=10)) == ["instruction"]
