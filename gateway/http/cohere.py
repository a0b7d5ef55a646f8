"""Cohere's API: POST /v2/embed, and /v1/embed. Its rerank is in `rerank`."""

import base64
import json
import secrets
from typing import Any, Literal

import numpy as np
from starlette.responses import Response

from gateway.http.embeddings import embed
from gateway.http.exchange import EMBED, Exchange
from gateway.http.fields import Body, Count
from services.api.vectors import F32, encode
from services.runtime.errors import InvalidField
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]

_INPUT_TYPES = {
    "search_query": embed_pb2.INPUT_TYPE_QUERY,
    "search_document": embed_pb2.INPUT_TYPE_DOCUMENT,
    "classification": embed_pb2.INPUT_TYPE_DOCUMENT,
    "clustering": embed_pb2.INPUT_TYPE_DOCUMENT,
    None: embed_pb2.INPUT_TYPE_DOCUMENT,
}
_TRUNCATION = {
    "END": common_pb2.TRUNCATION_END,
    "START": common_pb2.TRUNCATION_START,
    "NONE": common_pb2.TRUNCATION_ERROR,
    None: common_pb2.TRUNCATION_END,
}


class TextContent(Body):
    """A part of an input."""

    type: Literal["text"]
    text: str


class Input(Body):
    """An input of several parts, which are joined."""

    content: list[TextContent]


class EmbedRequest(Body):
    """The body of both routes. Images are refused: no model here reads them."""

    model: str
    texts: list[str] | None = None
    inputs: list[Input] | None = None
    input_type: Literal["search_query", "search_document", "classification", "clustering"] | None = None
    embedding_types: list[EmbeddingType] | None = None
    output_dimension: Count | None = None
    truncate: Literal["NONE", "START", "END"] | None = None
    max_tokens: Count | None = None


async def embed_v2(exchange: Exchange) -> Response:
    """POST /v2/embed. A query gets the model's default instruction."""
    return await _embed(exchange, "2")


async def embed_v1(exchange: Exchange) -> Response:
    """POST /v1/embed: the same, but vectors without a type where the client names none."""
    return await _embed(exchange, "1")


async def _embed(exchange: Exchange, version: Literal["1", "2"]) -> Response:
    call = await exchange.begin(EMBED)
    wanted = await exchange.read(EmbedRequest)
    texts = _texts(wanted)
    request = embed_pb2.EmbedRequest(
        texts=texts,
        input_type=_INPUT_TYPES[wanted.input_type],
        dimensions=wanted.output_dimension,
        truncation=_TRUNCATION[wanted.truncate],
        max_tokens=wanted.max_tokens,
    )
    embedded = await embed(exchange, call, request, wanted.model, "texts")
    untyped = version == "1" and not wanted.embedding_types

    def write() -> bytes:
        rows = np.stack([np.frombuffer(vector.data, "<f4") for vector in embedded.vectors])
        by_type = {kind: _as(kind, rows) for kind in wanted.embedding_types or ["float"]}
        billed = {"input_tokens": embedded.usage.input_tokens}
        response = {
            "id": secrets.token_hex(16),
            "response_type": "embeddings_floats" if untyped else "embeddings_by_type",
            "embeddings": by_type["float"] if untyped else by_type,
            "texts": texts,
            "meta": {"api_version": {"version": version}, "billed_units": billed},
        }
        return json.dumps(response, ensure_ascii=False).encode()

    return Response(await embedded.written(write), media_type="application/json")


def _texts(wanted: EmbedRequest) -> list[str]:
    if (wanted.texts is None) == (wanted.inputs is None):
        raise InvalidField("texts", "or inputs is needed, and not both")
    return wanted.texts or ["".join(part.text for part in each.content) for each in wanted.inputs or ()]


def _as(kind: EmbeddingType, rows: F32) -> list[Any]:
    """float32 [n, d] as Cohere writes it. Bits are packed into bytes, the signed ones less 128; int8 has no scale."""
    match kind:
        case "float":
            return list(rows.tolist())
        case "base64":
            return [base64.b64encode(row.tobytes()).decode() for row in rows]
        case "int8" | "uint8":
            whole = np.stack([np.frombuffer(each.data, np.int8) for each in encode(rows, embed_pb2.ENCODING_INT8)])
            return list((whole.astype(np.int16) + (128 if kind == "uint8" else 0)).tolist())
        case "binary" | "ubinary":
            packed = np.stack([np.frombuffer(each.data, np.uint8) for each in encode(rows, embed_pb2.ENCODING_BINARY)])
            return list((packed.astype(np.int16) - (128 if kind == "binary" else 0)).tolist())
