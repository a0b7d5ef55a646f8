"""The stored form of a collection: collections of earlier versions are read, and those written now are read by them."""

import dataclasses
import json

import pytest

from gateway.index.collection import Collection, ModelRef, Quantization

COLLECTION = Collection(
    "docs", "5e1f", ModelRef("qwen3", "main", "f00d"), 1024, Quantization.INT8, ("5e1f.0.7", "5e1f.1.2"), 32, 1_700_000
)
STORED = (
    '{"uid": "5e1f", "model": {"name": "qwen3", "revision": "main", "fingerprint": "f00d"}, "dimensions": 1024, '
    '"quantization": "Q8", "tags": ["5e1f.0.7", "5e1f.1.2"], "links": 32, "created_ns": 1700000}'
)


def test_the_stored_form_does_not_change() -> None:
    assert COLLECTION.pack() == STORED


def test_what_was_stored_is_read() -> None:
    assert Collection.unpack("docs", STORED.encode()) == COLLECTION


@pytest.mark.parametrize("quantization", Quantization)
def test_each_quantization_is_read_as_written(quantization: Quantization) -> None:
    collection = dataclasses.replace(COLLECTION, quantization=quantization)
    assert Collection.unpack("docs", collection.pack().encode()) == collection


def test_before_m_was_stored_it_was_16() -> None:
    stored = json.loads(STORED)
    del stored["links"]
    assert Collection.unpack("docs", json.dumps(stored).encode()) == dataclasses.replace(COLLECTION, m=16)
