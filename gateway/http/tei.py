"""The HTTP API of Hugging Face's Text Embeddings Inference: /embed, /rerank and /info."""

import json
from typing import Literal

from starlette.responses import Response

from gateway.http.embeddings import embed as embedded
from gateway.http.embeddings import floats
from gateway.http.errors import HttpProblem
from gateway.http.exchange import EMBED, EMBED_MODEL, RERANK, Exchange
from gateway.http.fields import Body, Count, Texts, listed
from gateway.http.rerank import scored
from services.runtime.errors import InvalidField
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2

Direction = Literal["Left", "Right", "left", "right"]


class EmbedRequest(Body):
    """The body of POST /embed. `prompt_name`: "query" gets the model's default instruction."""

    inputs: Texts
    normalize: bool = True
    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    prompt_name: Literal["query", "document"] | None = None
    dimensions: Count | None = None


class RerankRequest(Body):
    """The body of POST /rerank."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None
    truncation_direction: Direction = "Right"


async def embed(exchange: Exchange) -> Response:
    """POST /embed: a vector for each text."""
    call = await exchange.begin(EMBED)
    wanted = await exchange.read(EmbedRequest)
    if not wanted.normalize:
        raise InvalidField("normalize", "is false; the model's vectors have unit length always")
    request = embed_pb2.EmbedRequest(
        texts=listed(wanted.inputs),
        input_type=embed_pb2.INPUT_TYPE_QUERY if wanted.prompt_name == "query" else embed_pb2.INPUT_TYPE_DOCUMENT,
        dimensions=wanted.dimensions,
        truncation=_truncation(wanted.truncate, wanted.truncation_direction),
    )
    found = await embedded(exchange, call, request, None, "inputs")
    data = await found.written(lambda: b"[%b]" % b",".join([floats(vector) for vector in found.vectors]))
    return Response(data, media_type="application/json")


async def rerank(exchange: Exchange) -> Response:
    """POST /rerank: the scores, best first; with `raw_scores` logits."""
    call = await exchange.begin(RERANK)
    wanted = await exchange.read(RerankRequest)
    request = rerank_pb2.RerankRequest(
        query=wanted.query,
        documents=wanted.texts,
        truncation=_truncation(wanted.truncate, wanted.truncation_direction),
    )
    response = await scored(exchange, call, request)
    ranks = [
        {
            "index": result.index,
            "score": result.logit if wanted.raw_scores else result.score,
            **({"text": wanted.texts[result.index]} if wanted.return_text else {}),
        }
        for result in response.results
    ]
    return Response(json.dumps(ranks, ensure_ascii=False).encode(), media_type="application/json")


async def predict(exchange: Exchange) -> Response:
    """POST /predict: refused."""
    raise HttpProblem(424, "No classification model is served here. Use /embed or /rerank.")


async def info(exchange: Exchange) -> Response:
    """GET /info: the embedding model and the limits."""
    call = await exchange.begin(EMBED_MODEL)
    model = embed_pb2.GetModelResponse.FromString(await exchange.run(call.unary(embed_pb2.GetModelRequest())))
    body = {
        "model_id": model.model.name,
        "model_sha": model.model.revision or None,
        "model_dtype": model.dtype,
        "model_type": {"embedding": {"pooling": "last_token"}},
        "max_input_length": model.max_tokens,
        "max_client_batch_size": model.limits.max_items,
        "auto_truncate": True,
    }
    return Response(json.dumps(body).encode(), media_type="application/json")


def _truncation(truncate: bool | None, direction: Direction) -> common_pb2.Truncation:
    """TEI truncates unless it is told not to."""
    if truncate is False:
        return common_pb2.TRUNCATION_ERROR
    return common_pb2.TRUNCATION_START if direction.lower() == "left" else common_pb2.TRUNCATION_END
