"""Schemas of the responses and errors of APIs that others have defined, as far as they are written here."""

from typing import Any

from gateway.http.schemas import Schema


def _object(**properties: Any) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_VECTOR = _list(_NUMBER)
_MODEL = {
    **_object(
        id=_TEXT,
        object={"const": "model"},
        created=_COUNT,
        owned_by=_TEXT,
        task={"enum": ["embed", "rerank"]},
        revision=_TEXT,
        fingerprint=_TEXT,
        max_tokens=_COUNT,
        dtype=_TEXT,
        default_instruction=_TEXT,
    ),
    "description": "`dimensions` too, if it embeds",
}
_RANKED = {
    "type": "object",
    "required": ["index", "relevance_score"],
    "properties": {"index": _COUNT, "relevance_score": _NUMBER, "document": _object(text=_TEXT)},
}
_USAGE = _object(prompt_tokens=_COUNT, total_tokens=_COUNT)
_META = _object(api_version=_object(version=_TEXT), billed_units={"type": "object"})

EMBEDDINGS = _object(
    object={"const": "list"},
    data=_list(_object(object={"const": "embedding"}, index=_COUNT, embedding={"anyOf": [_VECTOR, _TEXT]})),
    model=_TEXT,
    usage=_USAGE,
)
MODEL = _MODEL
MODELS = _object(object={"const": "list"}, data=_list(_MODEL))
RERANK_V1 = _object(id=_TEXT, meta=_META, model=_TEXT, object={"const": "list"}, results=_list(_RANKED), usage=_USAGE)
RERANK_V2 = _object(id=_TEXT, meta=_META, results=_list(_RANKED))
_BY_TYPE = {"type": "object", "additionalProperties": _list({"anyOf": [_VECTOR, _TEXT]})}
COHERE_EMBED = _object(
    id=_TEXT, response_type={"const": "embeddings_by_type"}, embeddings=_BY_TYPE, texts=_list(_TEXT), meta=_META
)
COHERE_EMBED_V1 = _object(
    id=_TEXT,
    response_type={"enum": ["embeddings_floats", "embeddings_by_type"]},
    embeddings={"anyOf": [_BY_TYPE, _list(_VECTOR)]},
    texts=_list(_TEXT),
    meta=_META,
)
TEI_EMBED = _list(_VECTOR)
TEI_RERANK = _list(
    {
        "type": "object",
        "required": ["index", "score"],
        "properties": {"index": _COUNT, "score": _NUMBER, "text": _TEXT},
    }
)
TEI_INFO = _object(
    model_id=_TEXT,
    model_sha={"type": ["string", "null"]},
    model_dtype=_TEXT,
    model_type={"type": "object"},
    max_input_length=_COUNT,
    max_client_batch_size=_COUNT,
    auto_truncate={"type": "boolean"},
)

OPENAI_ERROR = _object(
    error=_object(message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}, code={"type": "string"})
)
COHERE_ERROR = _object(message=_TEXT)
RERANK_ERROR = _object(**OPENAI_ERROR["properties"], message=_TEXT)
TEI_ERROR = _object(error=_TEXT, error_type=_TEXT)
STATUS_ERROR = _object(error=_object(code=_COUNT, message=_TEXT, status=_TEXT))
