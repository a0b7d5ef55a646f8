"""Vectors between the model's float32 rows and the wire: slice, normalise, encode; and back.

All bytes are little-endian, as `winnow/embed/v1/embed.proto` says at `Encoding`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from winnow.embed.v1 import embed_pb2

F32 = npt.NDArray[np.float32]

MIN_DIMENSIONS = 32
_LITTLE_F32 = np.dtype("<f4")
_LITTLE_F16 = np.dtype("<f2")
_FAINT = 1e-15  # the squares of values of smaller rows underflow in float32


def narrow(vectors: F32, dimensions: int) -> F32:
    """Cuts float32 [n, native] to [n, dimensions], then L2-normalises in float32: in this order, as Matryoshka needs.

    A row of zeros stays zeros.
    """
    rows = np.asarray(vectors, dtype=np.float32)[:, :dimensions]
    norms = _norms(rows)
    if (faint := norms[:, 0] < _FAINT).any():
        peaks = np.abs(rows[faint]).max(axis=1, keepdims=True)
        rows = rows.copy()
        rows[faint] = np.divide(rows[faint], peaks, out=np.zeros_like(rows[faint]), where=peaks > 0)
        norms = _norms(rows)
    unit: F32 = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def _norms(rows: F32) -> F32:
    norms: F32 = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return norms


def encode(vectors: F32, encoding: embed_pb2.Encoding) -> list[embed_pb2.Embedding]:
    """float32 [n, d] rows of unit length as n wire messages. UNSPECIFIED is written as FLOAT32."""
    n, d = vectors.shape
    match encoding:
        case embed_pb2.ENCODING_UNSPECIFIED | embed_pb2.ENCODING_FLOAT32:
            data = [row.tobytes() for row in vectors.astype(_LITTLE_F32, copy=False)]
            encoding = embed_pb2.ENCODING_FLOAT32
        case embed_pb2.ENCODING_FLOAT16:
            data = [row.tobytes() for row in vectors.astype(_LITTLE_F16)]
        case embed_pb2.ENCODING_BINARY:
            # packbits fills from the high bit down and pads the last byte with 0: dimension 8k+j is bit 7-j of byte k.
            data = [row.tobytes() for row in np.packbits(vectors >= 0, axis=1)]
        case embed_pb2.ENCODING_INT8:
            peak = np.abs(vectors).max(axis=1, initial=0.0)
            scales = np.where(peak > 0, peak / np.float32(127), np.float32(1)).astype(np.float32)
            whole = np.rint(vectors / scales[:, None]).clip(-127, 127).astype(np.int8)
            return [
                embed_pb2.Embedding(data=whole[i].tobytes(), encoding=encoding, dimensions=d, scale=float(scales[i]))
                for i in range(n)
            ]
        case embed_pb2.ENCODING_FLOAT_LIST:
            return [
                embed_pb2.Embedding(floats=embed_pb2.FloatList(values=row), encoding=encoding, dimensions=d)
                for row in vectors.tolist()
            ]
        case _:
            raise ValueError(f"unknown encoding {encoding}")
    return [embed_pb2.Embedding(data=item, encoding=encoding, dimensions=d) for item in data]


def decode(embedding: embed_pb2.Embedding) -> F32:
    """One wire vector as float32 [dimensions].

    FLOAT16 and INT8 come back rounded; BINARY as ±1/√dimensions, which keeps the angle's estimate and unit length.
    ValueError if the data do not fit the encoding and the dimensions.
    """
    d = embedding.dimensions
    match embedding.encoding:
        case embed_pb2.ENCODING_FLOAT32:
            vector = np.frombuffer(embedding.data, dtype=_LITTLE_F32).astype(np.float32, copy=False)
        case embed_pb2.ENCODING_FLOAT16:
            vector = np.frombuffer(embedding.data, dtype=_LITTLE_F16).astype(np.float32)
        case embed_pb2.ENCODING_INT8:
            vector = np.frombuffer(embedding.data, dtype=np.int8).astype(np.float32) * np.float32(embedding.scale)
        case embed_pb2.ENCODING_BINARY:
            if len(embedding.data) != (d + 7) // 8:
                raise ValueError(f"{len(embedding.data)} bytes do not hold {d} bits")
            bits = np.unpackbits(np.frombuffer(embedding.data, dtype=np.uint8), count=d).astype(np.float32)
            vector = (bits * 2 - 1) / np.float32(np.sqrt(d or 1))
        case embed_pb2.ENCODING_FLOAT_LIST:
            vector = np.array(embedding.floats.values, dtype=np.float32)
        case _:
            raise ValueError(f"unknown encoding {embedding.encoding}")
    if vector.shape != (d,):
        raise ValueError(f"{vector.size} values instead of {d}")
    return vector
