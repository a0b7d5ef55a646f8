"""Cache entries, and their encoding.

Both formats begin with a version byte and end their header with a CRC-32 over key, header and payload: a value that is
short, damaged, of another version, or stored under another key is a miss, never an answer.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Self

import numpy as np

from services.api.vectors import F32, MIN_DIMENSIONS

# 2: FLOAT32 values if FLOAT16 is too coarse. Version 1 had FLOAT16 values for every vector.
_VECTOR_VERSION = 2
_SCORE_VERSION = 1
_VECTOR = struct.Struct("<BBHI")  # version, flags, dimensions, tokens; then CRC-32, then the values
_SCORE = struct.Struct("<BBHId")  # version, flags, 0, tokens, logit; then CRC-32
_CRC = struct.Struct("<I")
_TRUNCATED = 1
_WIDE = 2

_HALF, _SINGLE = np.dtype("<f2"), np.dtype("<f4")
# Rounding to float16 changes a value x by at most max(2^-11 |x|, 2^-25). If the first 32 values have a norm n, that
# is at most sqrt(2^-22 + d 2^-50 / n^2) of the norm of the first d >= 32 values: below 5e-4 for n >= 0.05, d <= 4096.
_LEAST_NORM = 0.05


@dataclass(frozen=True, slots=True)
class CachedVector:
    """A full-width unit vector, little-endian, from which every width and encoding is derived.

    The values are float16 if that changes no unit vector of its first 32 or more dimensions by more than 5e-4 (L2 norm
    of the difference). Otherwise they are float32 (`wide`): in a vector with a few large values among tiny ones.
    """

    data: bytes
    tokens: int
    truncated: bool
    wide: bool = False

    @classmethod
    def of(cls, values: bytes, tokens: int, truncated: bool) -> Self | None:
        """The entry of a unit vector of float32 values.

        None if a value is not finite, or if the first 32 are zero, since no unit vector can be made of them.
        """
        row = np.frombuffer(values, _SINGLE)
        head = row[:MIN_DIMENSIONS]
        if not head.any() or not np.isfinite(row).all():
            return None
        if head @ head < _LEAST_NORM**2:
            return cls(values, tokens, truncated, wide=True)
        return cls(row.astype(_HALF).tobytes(), tokens, truncated)

    @property
    def row(self) -> F32:
        """The values, float32 [dimensions]."""
        return np.frombuffer(self.data, _SINGLE if self.wide else _HALF).astype(np.float32, copy=False)

    @property
    def size(self) -> int:
        """Approximate bytes in memory."""
        return len(self.data) + 200


@dataclass(frozen=True, slots=True)
class CachedScore:
    """The score of one pair, as its logit."""

    logit: float
    tokens: int
    truncated: bool

    @property
    def size(self) -> int:
        """Approximate bytes in memory."""
        return 250

    @property
    def probability(self) -> float:
        """1 / (1 + exp(-logit)), written so that neither side overflows."""
        if self.logit >= 0:
            return 1.0 / (1.0 + math.exp(-self.logit))
        odds = math.exp(self.logit)
        return odds / (1.0 + odds)


class VectorCodec:
    """Encodes and decodes vectors."""

    @staticmethod
    def pack(key: bytes, entry: CachedVector) -> bytes:
        """The value to store under `key`."""
        flags = _TRUNCATED * entry.truncated | _WIDE * entry.wide
        head = _VECTOR.pack(_VECTOR_VERSION, flags, len(entry.data) // _bytes(entry.wide), entry.tokens)
        return head + _crc(key, head, entry.data) + entry.data

    @staticmethod
    def unpack(key: bytes, value: bytes) -> CachedVector | None:
        """The entry, or None if the value is not exactly what `pack` wrote for this key."""
        start = _VECTOR.size + _CRC.size
        if len(value) < start or value[0] != _VECTOR_VERSION:
            return None
        _, flags, dimensions, tokens = _VECTOR.unpack_from(value)
        data, wide = value[start:], bool(flags & _WIDE)
        if len(data) != _bytes(wide) * dimensions or value[_VECTOR.size : start] != _crc(
            key, value[: _VECTOR.size], data
        ):
            return None
        return CachedVector(data, tokens, bool(flags & _TRUNCATED), wide)


class ScoreCodec:
    """Encodes and decodes scores."""

    @staticmethod
    def pack(key: bytes, entry: CachedScore) -> bytes:
        """The value to store under `key`."""
        head = _SCORE.pack(_SCORE_VERSION, _TRUNCATED * entry.truncated, 0, entry.tokens, entry.logit)
        return head + _crc(key, head, b"")

    @staticmethod
    def unpack(key: bytes, value: bytes) -> CachedScore | None:
        """The entry, or None if the value is not exactly what `pack` wrote for this key."""
        if len(value) != _SCORE.size + _CRC.size or value[0] != _SCORE_VERSION:
            return None
        if value[_SCORE.size :] != _crc(key, value[: _SCORE.size], b""):
            return None
        _, flags, _, tokens, logit = _SCORE.unpack_from(value)
        return CachedScore(logit, tokens, bool(flags & _TRUNCATED))


def _bytes(wide: bool) -> int:
    return _SINGLE.itemsize if wide else _HALF.itemsize


def _crc(key: bytes, head: bytes, data: bytes) -> bytes:
    return _CRC.pack(zlib.crc32(data, zlib.crc32(head, zlib.crc32(key))))
