"""What a message may hold is counted before it is parsed."""

import random
from typing import Any

import pytest
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import InvalidFields
from services.runtime.wire import Shape, holds_lists
from tests.support.hostile import METHODS, mutated
from winnow.embed.v1 import embed_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

MAX = 8


def refused(message: type[Message], data: bytes) -> tuple[str, str] | None:
    descriptor: Any = message.DESCRIPTOR
    try:
        Shape(descriptor, MAX).check(data)
    except InvalidFields as problem:
        [violation] = problem.violations
        return violation
    return None


def documents(count: int) -> pb.InlineDocuments:
    return pb.InlineDocuments(documents=[pb.Document(id=str(n), text="t", metadata_json="{}") for n in range(count)])


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (embed_pb2.EmbedRequest(texts=["x" * n for n in range(MAX)], instruction="i", max_tokens=300), "texts"),
        (pb.SearchRequest(query="q", documents=documents(MAX), min_score=0.5, top_n=3), "documents.documents"),
        (pb.GetDocumentsRequest(collection="c", ids=["x" * 300] * MAX), "ids"),
        (embed_pb2.EmbedStreamRequest(items=[embed_pb2.EmbedStreamItem(id="a", text="x")] * MAX), "items"),
    ],
)
def test_as_many_items_as_are_allowed_and_no_more(message: Message, field: str) -> None:
    data = message.SerializeToString()
    assert refused(type(message), data) is None
    name, *rest = field.split(".")
    more = type(message)()
    items = getattr(more, name)
    for each in rest:
        items = getattr(items, each)
    items.add() if hasattr(items, "add") else items.append("")
    # Appended, a message is merged: so is each part of a message that is sent twice.
    said = refused(type(message), data + more.SerializeToString())
    assert said == (field, f"has more than {MAX} items; at most {MAX} are allowed in one request")


@pytest.mark.parametrize(
    "data",
    [
        b"\x98\x06\x00" * 2000,  # an unknown number
        b"\x9b\x06" * 2000,  # groups in groups
        b"\x9b\x06\x9c\x06" * 2000,
        b"\x10\x01" * 2000,  # a known one, again and again
        b"\x9d\x06\0\0\0\0" * 2000,
        b"\x99\x06\0\0\0\0\0\0\0\0" * 2000,
    ],
)
def test_fields_of_any_kind_are_bounded(data: bytes) -> None:
    assert refused(embed_pb2.EmbedRequest, data) == (
        "winnow.embed.v1.EmbedRequest",
        "has more than 1088 fields; send it in parts",
    )


def test_types_that_hold_themselves() -> None:
    value = struct_pb2.Value(number_value=1)
    for _ in range(40):
        value = struct_pb2.Value(list_value=struct_pb2.ListValue(values=[value]))
    assert refused(struct_pb2.Value, value.SerializeToString()) == (
        "list_value.values",
        f"has more than {MAX} items; at most {MAX} are allowed in one request",
    )
    deep = b""
    for tag in (b"\x32", b"\x0a") * 1000:  # a Value holds a list, a ListValue holds values
        deep = tag + _varint(len(deep)) + deep
    assert refused(struct_pb2.ListValue, deep) is not None


def _varint(value: int) -> bytes:
    coded = bytearray()
    while value > 127:
        coded.append(value & 127 | 128)
        value >>= 7
    return bytes((*coded, value))


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05abc", b"\xff" * 1_000_000, b"\x08" + b"\x80" * 1_000_000, b"\x0f"])
def test_what_is_malformed_is_left_to_the_parser(data: bytes) -> None:
    assert refused(embed_pb2.EmbedRequest, data) is None
    with pytest.raises(DecodeError):
        embed_pb2.EmbedRequest.FromString(data)


@given(st.integers(0, 2**32))
def test_nothing_that_parses_holds_more_than_was_counted(seed: int) -> None:
    rng = random.Random(seed)
    _, request = rng.choice(METHODS["gateway"])
    many = request.SerializeToString() * rng.randint(1, 6)
    data = mutated(many, rng)
    try:
        parsed = type(request).FromString(data)
    except DecodeError:
        return
    if refused(type(request), data) is None:
        assert _most(parsed) <= MAX


def _most(message: Message) -> int:
    """The length of the longest list at any level."""
    most = 0
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        most = max(most, len(values) if field.is_repeated else 0)
        if field.message_type is not None:
            most = max(most, *map(_most, values))
    return most


def test_requests_without_lists_are_those_that_are_small() -> None:
    types: dict[str, Any] = {type(request).__name__: request.DESCRIPTOR for _, request in METHODS["gateway"]}
    small = {name for name, descriptor in types.items() if not holds_lists(descriptor)}
    assert small == {
        "GetModelRequest", "CreateCollectionRequest", "GetCollectionRequest", "ListCollectionsRequest",
        "DeleteCollectionRequest", "SetAliasRequest", "DeleteAliasRequest", "HealthCheckRequest",
        "ServerReflectionRequest",
    }  # fmt: skip
    assert holds_lists(struct_pb2.Value.DESCRIPTOR)
