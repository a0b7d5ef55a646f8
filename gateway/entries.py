"""What the cache keeps, and how it is written.

Both formats begin with a version byte and end their header with a CRC-32 over key, header and payload: a value that is
short, damaged, written by another version, or stored under another key is read as a miss, never as an answer.
"""

import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np

_VERSION = 1
_VECTOR = struct.Struct("<BBHI")  # version, flags, dimensions, tokens; then CRC-32, then float16 values
_SCORE = struct.Struct("<BBHId")  # version, flags, 0, tokens, logit; then CRC-32
_CRC = struct.Struct("<I")
_TRUNCATED = 1


@dataclass(frozen=True, slots=True)
class VectorEntry:
    """A full-width vector of little-endian float16, from which every width and encoding is derived."""

    data: bytes
    tokens: int
    truncated: bool

    @property
    def size(self) -> int:
        """Bytes in memory, roughly."""
        return len(self.data) + 200


@dataclass(frozen=True, slots=True)
class ScoreEntry:
    """The score of one pair, as its logit."""

    logit: float
    tokens: int
    truncated: bool

    @property
    def size(self) -> int:
        """Bytes in memory, roughly."""
        return 250

    @property
    def score(self) -> float:
        """Probability of "yes": 1 / (1 + exp(-logit)), written so that neither side overflows."""
        if self.logit >= 0:
            return 1.0 / (1.0 + math.exp(-self.logit))
        odds = math.exp(self.logit)
        return odds / (1.0 + odds)


class VectorCodec:
    """Writes and reads vectors."""

    @staticmethod
    def pack(key: bytes, entry: VectorEntry) -> bytes:
        """The value to store under `key`."""
        head = _VECTOR.pack(_VERSION, _TRUNCATED * entry.truncated, len(entry.data) // 2, entry.tokens)
        return head + _crc(key, head, entry.data) + entry.data

    @staticmethod
    def unpack(key: bytes, value: bytes) -> VectorEntry | None:
        """The entry, or None where the value is not exactly what `pack` wrote for this key."""
        start = _VECTOR.size + _CRC.size
        if len(value) < start or value[0] != _VERSION:
            return None
        _, flags, dimensions, tokens = _VECTOR.unpack_from(value)
        data = value[start:]
        if len(data) != 2 * dimensions or value[_VECTOR.size : start] != _crc(key, value[: _VECTOR.size], data):
            return None
        return VectorEntry(data, tokens, bool(flags & _TRUNCATED))


class ScoreCodec:
    """Writes and reads scores."""

    @staticmethod
    def pack(key: bytes, entry: ScoreEntry) -> bytes:
        """The value to store under `key`."""
        head = _SCORE.pack(_VERSION, _TRUNCATED * entry.truncated, 0, entry.tokens, entry.logit)
        return head + _crc(key, head, b"")

    @staticmethod
    def unpack(key: bytes, value: bytes) -> ScoreEntry | None:
        """The entry, or None where the value is not exactly what `pack` wrote for this key."""
        if len(value) != _SCORE.size + _CRC.size or value[0] != _VERSION:
            return None
        if value[_SCORE.size :] != _crc(key, value[: _SCORE.size], b""):
            return None
        _, flags, _, tokens, logit = _SCORE.unpack_from(value)
        return ScoreEntry(logit, tokens, bool(flags & _TRUNCATED))


def finite(data: bytes) -> bool:
    """True where little-endian float16 `data` holds neither NaN nor infinity."""
    return bool(np.isfinite(np.frombuffer(data, "<f2")).all())


def _crc(key: bytes, head: bytes, data: bytes) -> bytes:
    return _CRC.pack(zlib.crc32(data, zlib.crc32(head, zlib.crc32(key))))
