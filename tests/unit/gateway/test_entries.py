"""What the cache keeps: it comes back as it was, or not at all."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.entries import ScoreCodec, ScoreEntry, VectorCodec, VectorEntry, finite

vector_entries = st.builds(
    VectorEntry,
    data=st.integers(1, 40).flatmap(lambda d: st.binary(min_size=2 * d, max_size=2 * d)),
    tokens=st.integers(0, 2**32 - 1),
    truncated=st.booleans(),
)
score_entries = st.builds(
    ScoreEntry,
    logit=st.floats(allow_nan=False, allow_infinity=False),
    tokens=st.integers(0, 2**32 - 1),
    truncated=st.booleans(),
)
CASES = [(VectorCodec, VectorEntry(b"\x01\x02" * 64, 7, True)), (ScoreCodec, ScoreEntry(1.25, 7, True))]


@given(vector_entries, st.binary())
def test_vectors_survive(entry, key):
    assert VectorCodec.unpack(key, VectorCodec.pack(key, entry)) == entry


@given(score_entries, st.binary())
def test_scores_survive(entry, key):
    assert ScoreCodec.unpack(key, ScoreCodec.pack(key, entry)) == entry


@pytest.mark.parametrize(("codec", "entry"), CASES)
def test_a_damaged_value_is_a_miss(codec, entry):
    value = codec.pack(b"key", entry)
    for position in range(len(value)):
        for bit in range(8):
            damaged = bytearray(value)
            damaged[position] ^= 1 << bit
            assert codec.unpack(b"key", bytes(damaged)) is None, f"bit {bit} of byte {position}"


@pytest.mark.parametrize(("codec", "entry"), CASES)
def test_a_short_or_long_value_is_a_miss(codec, entry):
    value = codec.pack(b"key", entry)
    for length in range(len(value)):
        assert codec.unpack(b"key", value[:length]) is None
    assert codec.unpack(b"key", value + b"\x00") is None
    assert codec.unpack(b"key", value + value) is None


@pytest.mark.parametrize(("codec", "entry"), CASES)
def test_a_value_of_another_key_version_or_kind_is_a_miss(codec, entry):
    value = codec.pack(b"key", entry)
    assert codec.unpack(b"kez", value) is None
    assert codec.unpack(b"key", bytes((value[0] + 1,)) + value[1:]) is None
    other = ScoreCodec if codec is VectorCodec else VectorCodec
    assert other.unpack(b"key", value) is None


@given(st.binary(max_size=100))
def test_foreign_bytes_are_a_miss(value):
    assert VectorCodec.unpack(b"key", value) is None
    assert ScoreCodec.unpack(b"key", value) is None


@given(st.floats(-1000, 1000))
@example(0.0)
@example(800.0)
@example(-800.0)
def test_a_score_is_the_sigmoid_of_its_logit(logit):
    score = ScoreEntry(logit, 1, False).score
    assert 0 <= score <= 1
    assert score == pytest.approx(1 / (1 + math.exp(-logit)) if logit > -700 else 0.0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_out(wrong):
    row = np.ones(32, "<f2")
    assert finite(row.tobytes())
    row[31] = wrong
    assert not finite(row.tobytes())
