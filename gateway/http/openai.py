"""OpenAI's API: embeddings and models."""

import asyncio
import json
from binascii import b2a_base64
from typing import Any, Literal, TypeAlias

import grpc
from starlette.responses import Response

from gateway.http.embeddings import Embedded, embed, floats
from gateway.http.errors import UnknownModel
from gateway.http.exchange import EMBED, EMBED_MODEL, RERANK_MODEL, Exchange
from gateway.http.fields import INPUT_TYPES, Body, Count, Texts, listed
from services.runtime.errors import Problem
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2

Model: TypeAlias = embed_pb2.GetModelResponse | rerank_pb2.GetModelResponse

_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class EmbeddingsRequest(Body):
    """The body of POST /v1/embeddings. `input_type` and `instruction` are extensions."""

    input: Texts
    model: str
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None
    input_type: Literal["document", "query", "symmetric"] | None = None
    instruction: str | None = None


async def embeddings(exchange: Exchange) -> Response:
    """POST /v1/embeddings."""
    call = await exchange.begin(EMBED)
    wanted = await exchange.read(EmbeddingsRequest)
    request = embed_pb2.EmbedRequest(
        texts=listed(wanted.input),
        input_type=INPUT_TYPES[wanted.input_type],
        instruction=wanted.instruction,
        dimensions=wanted.dimensions,
    )
    embedded = await embed(exchange, call, request, wanted.model, "input")
    if wanted.encoding_format == "base64":
        data = _response(embedded, [b'"%b"' % b2a_base64(vector.data, newline=False) for vector in embedded.vectors])
    else:
        data = await embedded.written(lambda: _response(embedded, [floats(vector) for vector in embedded.vectors]))
    return Response(data, media_type="application/json")


async def models(exchange: Exchange) -> Response:
    """GET /v1/models: the models that can be reached."""
    served = await _served(exchange)
    data = [_described(each.model.name, each) for each in served]
    return Response(json.dumps({"object": "list", "data": data}), media_type="application/json")


async def model(exchange: Exchange) -> Response:
    """GET /v1/models/{id}, whose id may hold slashes."""
    name = exchange.request.path_params["id"]
    served = await _served(exchange)
    found = next((each for each in served if exchange.accepts(name, each.model)), None)
    if found is None:
        raise UnknownModel(name, '" and "'.join(each.model.name for each in served))
    return Response(json.dumps(_described(name, found)), media_type="application/json")


async def _served(exchange: Exchange) -> list[Model]:
    embed_call = await exchange.begin(EMBED_MODEL)
    rerank_call = await exchange.begin(RERANK_MODEL)

    async def work() -> tuple[bytes | BaseException, bytes | BaseException]:
        asked = embed_call.unary(embed_pb2.GetModelRequest()), rerank_call.unary(rerank_pb2.GetModelRequest())
        return await asyncio.gather(*asked, return_exceptions=True)

    embeds, reranks = await exchange.run(work())
    found: list[Model] = []
    if isinstance(embeds, bytes):
        found.append(embed_pb2.GetModelResponse.FromString(embeds))
    if isinstance(reranks, bytes):
        found.append(rerank_pb2.GetModelResponse.FromString(reranks))
    for failed in (embeds, reranks):
        unreachable = isinstance(failed, Problem) and failed.code in _UNREACHABLE
        if isinstance(failed, BaseException) and not (unreachable and found):
            raise failed
    return found


def _described(name: str, served: Model) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "winnow",
        "task": "embed" if isinstance(served, embed_pb2.GetModelResponse) else "rerank",
        "revision": served.model.revision,
        "fingerprint": served.model.fingerprint,
        "max_tokens": served.max_tokens,
        "dtype": served.dtype,
        "default_instruction": served.default_instruction,
        **({"dimensions": served.dimensions} if isinstance(served, embed_pb2.GetModelResponse) else {}),
    }


def _response(embedded: Embedded, vectors: list[bytes]) -> bytes:
    """The body, of vectors that are JSON already: they are megabytes, and need no look at each character."""
    items = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector) for index, vector in enumerate(vectors)
    )
    tokens = embedded.usage.input_tokens
    return b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
        items,
        json.dumps(embedded.model.name).encode(),
        tokens,
        tokens,
    )
