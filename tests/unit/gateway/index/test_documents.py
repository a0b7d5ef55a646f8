"""Metadata and digests of documents."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.index.documents import MAX_METADATA_BYTES, Digest, Document, metadata_error

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_any_json_object_is_fine(value: dict[str, object]) -> None:
    assert metadata_error(json.dumps(value)) is None


@pytest.mark.parametrize("good", ["", "{}", ' {"a": 1}\n', '{"a": [1, "x", true, null]}', '{"a": ' + "9" * 200 + "}"])
def test_good(good: str) -> None:
    assert metadata_error(good) is None


@pytest.mark.parametrize(
    "bad",
    ["{", "[]", "1", "null", '"a"', "{a: 1}", "{'a': 1}", '{"a": NaN}', '{"a": Infinity}', '{"a": -Infinity}',
     '{"a": 1e400}', '{"a": 1}x', '{"a":' * 40 + "1" + "}" * 40, '{"a":' + "[" * 100_000,
     json.dumps({"a": "x" * MAX_METADATA_BYTES})],
)  # fmt: skip
def test_bad(bad: str) -> None:
    assert metadata_error(bad)


@given(st.text(), st.text(), st.booleans())
def test_digests_survive_and_tell_documents_apart(text: str, metadata: str, truncated: bool) -> None:
    digest = Digest.of(Document("id", text, metadata))
    kept = Digest(digest.text, digest.metadata, truncated)
    assert Digest.unpack(kept.pack()) == kept
    assert kept.same(digest)
    assert not digest.same(Digest.of(Document("id", text + "x", metadata)))
    assert not digest.same(Digest.of(Document("id", text, metadata + "x")))


@pytest.mark.parametrize("value", [None, b"", b"\x01" * 33, b"\x01" * 35, b"\x02" + bytes(33)])
def test_what_is_no_digest_is_none(value: bytes | None) -> None:
    assert Digest.unpack(value) is None
