"""What decides a result is in its identity: every field of a request, unless this file says why it is not."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from gateway.api.embed import encoded_key
from gateway.cache.keys import CacheKeys
from services.api.options import embed_options, rerank_options
from services.runtime.validation import Check
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2

LIMITS = common_pb2.Limits(max_items=10, max_text_bytes=1000, max_message_bytes=1 << 20)
IDENTITY = common_pb2.ModelIdentity(fingerprint="f")
EMBED_MODEL = embed_pb2.GetModelResponse(
    model=IDENTITY, dimensions=256, min_dimensions=32, max_tokens=512, default_instruction="default"
)
RERANK_MODEL = rerank_pb2.GetModelResponse(model=IDENTITY, max_tokens=512, default_instruction="default")

# Fields that change when or in which form a result is given, and never the cached value itself.
EMBED_FORM = {"dimensions", "encoding"}  # every width and encoding is derived from the cached vector
EMBED_OTHER = {"priority"}
RERANK_OTHER = {"priority", "top_n", "min_score", "return_documents"}


def with_value(base: Message, field: FieldDescriptor, choice: int) -> Message:
    """A copy of `base` in which `field` has one of two values."""
    changed = type(base)()
    changed.CopyFrom(base)
    match field.type:
        case FieldDescriptor.TYPE_ENUM:
            assert field.enum_type is not None
            value: object = field.enum_type.values[1 + choice].number
        case FieldDescriptor.TYPE_STRING:
            value = ("one", "other")[choice]
        case FieldDescriptor.TYPE_BOOL:
            value = bool(choice)
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
            value = (0.25, 0.5)[choice]
        case _:
            value = (130, 131)[choice]
    if field.is_repeated:
        del getattr(changed, field.name)[:]
        getattr(changed, field.name).append(value)
    else:
        setattr(changed, field.name, value)
    return changed


def embed_key(request: embed_pb2.EmbedRequest | embed_pb2.EmbedOptions) -> bytes:
    options, _ = embed_options(request, EMBED_MODEL, LIMITS, Check())
    texts = request.texts if isinstance(request, embed_pb2.EmbedRequest) else ["text"]
    return CacheKeys("").keys("embed", "f", options.resolved(EMBED_MODEL).identity(), texts)[0]


def rerank_key(request: rerank_pb2.RerankRequest) -> bytes:
    options = rerank_options(request, RERANK_MODEL, LIMITS)
    return CacheKeys("").keys("rerank", "f", options.resolved(RERANK_MODEL).identity(), request.documents)[0]


def encoded(request: embed_pb2.EmbedRequest) -> object:
    options, form = embed_options(request, EMBED_MODEL, LIMITS, Check())
    return encoded_key(EMBED_MODEL, options, form), list(request.texts)


def moved(key: Callable[[Any], object], base: Message, field: Any) -> bool:
    return key(with_value(base, field, 0)) != key(with_value(base, field, 1))


QUERY = embed_pb2.INPUT_TYPE_QUERY
BASES: dict[str, tuple[Callable[[Any], object], Message, set[str]]] = {
    "EmbedRequest": (embed_key, embed_pb2.EmbedRequest(texts=["text"], input_type=QUERY), EMBED_FORM | EMBED_OTHER),
    "EmbedOptions": (embed_key, embed_pb2.EmbedOptions(input_type=QUERY), EMBED_FORM | EMBED_OTHER),
    "RerankRequest": (rerank_key, rerank_pb2.RerankRequest(query="q", documents=["d"]), RERANK_OTHER),
    "encoded EmbedRequest": (encoded, embed_pb2.EmbedRequest(texts=["text"], input_type=QUERY), EMBED_OTHER),
}


@pytest.mark.parametrize(
    ("name", "field"), [(name, field.name) for name, (_, base, _) in BASES.items() for field in base.DESCRIPTOR.fields]
)
def test_every_field_decides_or_is_named_here(name: str, field: str) -> None:
    key, base, other = BASES[name]
    assert moved(key, base, base.DESCRIPTOR.fields_by_name[field]) == (field not in other)


@pytest.mark.parametrize("name", BASES)
def test_the_exceptions_exist(name: str) -> None:
    _, base, other = BASES[name]
    assert other <= set(base.DESCRIPTOR.fields_by_name)


def test_a_default_and_its_value_are_one() -> None:
    plain = embed_pb2.EmbedRequest(texts=["text"], input_type=QUERY)
    named = embed_pb2.EmbedRequest(
        texts=["text"],
        input_type=QUERY,
        instruction="default",
        max_tokens=512,
        truncation=common_pb2.TRUNCATION_END,
        encoding=embed_pb2.ENCODING_FLOAT32,
        dimensions=256,
    )
    assert embed_key(plain) == embed_key(named)
    assert encoded(plain) == encoded(named)
    assert rerank_key(rerank_pb2.RerankRequest(query="q", documents=["d"])) == rerank_key(
        rerank_pb2.RerankRequest(
            query="q", documents=["d"], instruction="default", max_tokens=512, truncation=common_pb2.TRUNCATION_END
        )
    )
