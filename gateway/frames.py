"""Results of warm texts as they go over the wire: where all of a request are here, its answer is a concatenation.

Serialising a hundred vectors of 1024 dimensions takes longer than gRPC itself takes to send them.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count

from gateway.lru import Lru
from winnow.embed.v1 import embed_pb2

# Field 1 (EmbedResponse.results), length-delimited.
_TAG = bytes((1 << 3 | 2,))
_OVERHEAD = 250
_MOST_KEYS = 4096


@dataclass(frozen=True, slots=True)
class Frame:
    """One serialised entry of `EmbedResponse.results`, with tag and length."""

    data: bytes
    tokens: int
    size: int


class Frames:
    """Frames by text, for each way of embedding and encoding (`key`)."""

    def __init__(self, limit_bytes: int) -> None:
        self._frames: Lru[tuple[int, str], Frame] = Lru(limit_bytes)
        self._numbers: dict[Hashable, int] = {}  # a small number for each key: hashing the key each time would cost
        self._next = count()

    def get(self, key: Hashable, texts: Sequence[str]) -> list[Frame] | None:
        """The frames of all texts, in their order; None where one is missing."""
        number = self._numbers.get(key)
        if number is None:
            return None
        return self._frames.all([(number, text) for text in texts])

    def put(self, key: Hashable, text: str, result: embed_pb2.EmbedResult) -> None:
        """Keep the result of a text, which says that it came from the cache."""
        number = self._numbers.get(key)
        if number is None:
            if len(self._numbers) >= _MOST_KEYS:
                self._numbers.clear()  # their frames are out of reach now, and the LRU drops them in time
            number = self._numbers[key] = next(self._next)
        data = result.SerializeToString()
        frame = _TAG + _varint(len(data)) + data
        self._frames.put((number, text), Frame(frame, result.tokens, len(frame) + len(text) + _OVERHEAD))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
