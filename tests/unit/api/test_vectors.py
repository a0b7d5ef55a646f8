import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from services.api.vectors import decode, encode, narrow
from winnow.embed.v1 import embed_pb2

# A busy machine is no failure.
RELAXED = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
# Far from where squares overflow or vanish.
VALUES = st.floats(-10, 10, width=32).map(lambda value: value if abs(value) > 1e-3 else 0.0)
ROWS = st.tuples(st.integers(1, 4), st.integers(33, 80)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=VALUES)
)


def unit(n: int = 3, d: int = 45) -> np.ndarray:
    return narrow(np.random.default_rng(7).normal(size=(n, d)).astype(np.float32), d)


@RELAXED
@given(ROWS, st.integers(1, 33))
def test_narrow_slices_then_normalises(rows: np.ndarray, dimensions: int) -> None:
    cut = rows[:, :dimensions].astype(np.float64)
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    expected = np.divide(cut, norms, out=np.zeros_like(cut), where=norms > 0)
    narrowed = narrow(rows, dimensions)
    assert narrowed.dtype == np.float32
    np.testing.assert_allclose(narrowed, expected, atol=1e-6)


def test_float32_comes_back_bit_for_bit_in_little_endian() -> None:
    rows = unit()
    for encoding in (embed_pb2.ENCODING_FLOAT32, embed_pb2.ENCODING_UNSPECIFIED, embed_pb2.ENCODING_FLOAT_LIST):
        made = encode(rows, encoding)
        assert all(one.encoding != embed_pb2.ENCODING_UNSPECIFIED and one.dimensions == 45 for one in made)
        np.testing.assert_array_equal(np.stack([decode(one) for one in made]), rows)
    assert encode(rows, embed_pb2.ENCODING_FLOAT32)[0].data == b"".join(
        int(np.float32(value).view(np.uint32)).to_bytes(4, "little") for value in rows[0]
    )


def test_float16_rounds_to_nearest() -> None:
    rows = unit()
    back = np.stack([decode(one) for one in encode(rows, embed_pb2.ENCODING_FLOAT16)])
    np.testing.assert_array_equal(back, rows.astype(np.float16).astype(np.float32))


@RELAXED
@given(ROWS)
def test_int8_is_within_half_a_step(rows: np.ndarray) -> None:
    for row, made in zip(rows, encode(rows, embed_pb2.ENCODING_INT8), strict=True):
        assert len(made.data) == made.dimensions == row.size
        assert made.scale > 0
        assert np.abs(decode(made) - row).max() <= made.scale * 0.501


def test_binary_packs_from_the_high_bit_and_pads_with_zero() -> None:
    row = np.array([[0.5, -0.5, 0.0, -0.1, 0.1, 0.1, -1, -1, 1, -1]], np.float32)
    (made,) = encode(row, embed_pb2.ENCODING_BINARY)
    assert made.data == bytes([0b10101100, 0b10000000])
    np.testing.assert_allclose(decode(made), np.where(row[0] >= 0, 1, -1) / np.sqrt(10), atol=1e-7)


@pytest.mark.parametrize("encoding", [1, 2, 3, 4, 5])
def test_data_that_do_not_fit_are_refused(encoding: embed_pb2.Encoding) -> None:
    (made,) = encode(unit(1), encoding)
    made.dimensions += 8
    with pytest.raises(ValueError):
        decode(made)


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ValueError):
        encode(unit(), 99)  # type: ignore[arg-type] # what a newer client may send
    with pytest.raises(ValueError):
        decode(embed_pb2.Embedding(data=b"1234", dimensions=1))


@pytest.mark.parametrize("size", [1e-12, 1e-20, 1e-30, 1e-38])
def test_tiny_values_make_a_unit_vector_too(size: float) -> None:
    """Their squares vanish in float32."""
    rows = np.array([[3, 4, 0, 1 / size], [0, 0, 0, 1], [1, 0, 0, 0]], np.float64) * size
    rows[2] /= size
    expected = np.array([[0.6, 0.8, 0], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(narrow(rows.astype(np.float32), 3), expected, rtol=1e-6, atol=1e-7)
