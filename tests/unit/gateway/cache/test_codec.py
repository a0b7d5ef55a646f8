"""What the cache keeps: it comes back as it was, or not at all."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.cache.codec import CachedScore, CachedVector, ScoreCodec, VectorCodec
from gateway.cache.tiered import Codec
from gateway.models.embedder import vectors

vector_entries = st.builds(
    CachedVector,
    data=st.integers(1, 40).flatmap(lambda d: st.binary(min_size=4 * d, max_size=4 * d)),
    tokens=st.integers(0, 2**32 - 1),
    truncated=st.booleans(),
    wide=st.booleans(),
)
score_entries = st.builds(
    CachedScore,
    logit=st.floats(allow_nan=False, allow_infinity=False),
    tokens=st.integers(0, 2**32 - 1),
    truncated=st.booleans(),
)
CASES = [
    (VectorCodec, CachedVector(b"\x01\x02" * 64, 7, True)),
    (VectorCodec, CachedVector(b"\x01\x02\x03\x04" * 32, 7, True, wide=True)),
    (ScoreCodec, CachedScore(1.25, 7, True)),
]


@given(vector_entries, st.binary())
def test_vectors_survive(entry: CachedVector, key: bytes) -> None:
    assert VectorCodec.unpack(key, VectorCodec.pack(key, entry)) == entry


@given(score_entries, st.binary())
def test_scores_survive(entry: CachedScore, key: bytes) -> None:
    assert ScoreCodec.unpack(key, ScoreCodec.pack(key, entry)) == entry


@pytest.mark.parametrize(("codec", "entry"), CASES)
def test_a_damaged_value_is_a_miss(codec: Codec[Any], entry: CachedScore | CachedVector) -> None:
    value = codec.pack(b"key", entry)
    for position in range(len(value)):
        for bit in range(8):
            damaged = bytearray(value)
            damaged[position] ^= 1 << bit
            assert codec.unpack(b"key", bytes(damaged)) is None, f"bit {bit} of byte {position}"


@pytest.mark.parametrize(("codec", "entry"), CASES)
def test_a_short_or_long_value_is_a_miss(codec: Codec[Any], entry: CachedScore | CachedVector) -> None:
    value = codec.pack(b"key", entry)
    for length in range(len(value)):
        assert codec.unpack(b"key", value[:length]) is None
    assert codec.unpack(b"key", value + b"\x00") is None
    assert codec.unpack(b"key", value + value) is None


@pytest.mark.parametrize(("codec", "entry"), CASES)
def test_a_value_of_another_key_version_or_kind_is_a_miss(codec: Codec[Any], entry: CachedScore | CachedVector) -> None:
    value = codec.pack(b"key", entry)
    assert codec.unpack(b"kez", value) is None
    assert codec.unpack(b"key", bytes((value[0] + 1,)) + value[1:]) is None
    other = ScoreCodec if codec is VectorCodec else VectorCodec
    assert other.unpack(b"key", value) is None


@given(st.binary(max_size=100))
def test_foreign_bytes_are_a_miss(value: bytes) -> None:
    assert VectorCodec.unpack(b"key", value) is None
    assert ScoreCodec.unpack(b"key", value) is None


@given(st.floats(-1000, 1000))
@example(0.0)
@example(800.0)
@example(-800.0)
def test_a_probability_is_the_sigmoid_of_its_logit(logit: float) -> None:
    probability = CachedScore(logit, 1, False).probability
    assert 0 <= probability <= 1
    assert probability == pytest.approx(1 / (1 + math.exp(-logit)) if logit > -700 else 0.0)


def unit(values: np.ndarray) -> np.ndarray:
    row = np.asarray(values, np.float64)
    return (row / np.linalg.norm(row)).astype("<f4")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 31, 95])
def test_what_is_not_finite_makes_no_entry(wrong: float, place: int) -> None:
    row = unit(np.ones(96))
    assert CachedVector.of(row.tobytes(), 1, False) is not None
    row[place] = wrong
    assert CachedVector.of(row.tobytes(), 1, False) is None


def test_zeros_make_no_entry() -> None:
    assert CachedVector.of(bytes(4 * 96), 1, False) is None
    row = np.zeros(96, "<f4")
    row[32] = 1  # no unit vector of width 32 can be made of it
    assert CachedVector.of(row.tobytes(), 1, False) is None
    assert CachedVector.of(b"", 1, False) is None


def cached(row: np.ndarray) -> CachedVector:
    entry = CachedVector.of(row.tobytes(), 1, False)
    assert entry is not None
    return entry


@given(st.integers(32, 4096), st.floats(0, 20), st.integers(0, 2**32 - 1))
@example(4096, 0.0, 0)
def test_every_width_is_precise(dimensions: int, spread: float, seed: int) -> None:
    """Of values that lie up to 20 powers of e apart, kept as float16 or as float32."""
    random = np.random.default_rng(seed)
    row = unit(random.standard_normal(dimensions) * np.exp(-spread * random.random(dimensions)))
    entry = cached(row)
    for width in {32, 33, min(64, dimensions), dimensions}:
        if width <= dimensions:
            assert np.linalg.norm(vectors([entry], width)[0] - unit(row[:width])) < 5e-4


@pytest.mark.parametrize("large", [0, 31, 32, 95])
def test_one_large_value_among_tiny_ones(large: int) -> None:
    row = np.full(96, 1e-6, "<f4")
    row[large] = 1
    entry = cached(row)
    assert entry.wide == (large > 31)
    for width in (32, 33, 96):
        np.testing.assert_allclose(vectors([entry], width)[0], unit(row[:width]), atol=5e-4)


def test_usual_vectors_take_two_bytes_a_dimension() -> None:
    for dimensions in (32, 96, 1024, 2560, 4096):
        row = unit(np.random.default_rng(dimensions).standard_normal(dimensions))
        assert len(cached(row).data) == 2 * dimensions
