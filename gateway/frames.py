"""Results of warm texts as they go over the wire: where all of a request are here, its answer is a concatenation.

Serialising a hundred vectors of 1024 dimensions takes longer than gRPC itself takes to send them.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import cast

from winnow.embed.v1 import embed_pb2

# Field 1 (EmbedResponse.results), length-delimited.
_TAG = bytes((1 << 3 | 2,))
_OVERHEAD = 250
_MOST_KEYS = 2048  # of a generation: a key may hold a long instruction, which no frame's size counts


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One serialised entry of `EmbedResponse.results`, with tag and length."""

    data: bytes
    tokens: int
    size: int


_NONE: dict[str, Frame] = {}


class _Generation:
    """Frames by way of embedding, then by text."""

    def __init__(self) -> None:
        self.frames: dict[Hashable, dict[str, Frame]] = {}
        self.bytes = 0

    def put(self, key: Hashable, text: str, frame: Frame) -> None:
        known = self.frames.setdefault(key, {})
        old = known.get(text)
        self.bytes += frame.size - (0 if old is None else old.size)
        known[text] = frame

    def get(self, key: Hashable, text: str) -> Frame | None:
        return self.frames.get(key, _NONE).get(text)

    def pop(self, key: Hashable, text: str) -> Frame | None:
        frame = self.frames[key].pop(text, None) if key in self.frames else None
        if frame is not None:
            self.bytes -= frame.size
        return frame


class Frames:
    """Frames by text, for each way of embedding and encoding (`key`), in at most `limit_bytes`.

    Two generations, as looking a frame up must cost no more than that: when the young ones fill half the limit they
    become the old ones, and the old ones that nobody has asked for since are dropped.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._half = limit_bytes // 2
        self._young, self._old = _Generation(), _Generation()

    @property
    def held_bytes(self) -> int:
        """Bytes held, roughly."""
        return self._young.bytes + self._old.bytes

    def get(self, key: Hashable, texts: Sequence[str]) -> list[Frame] | None:
        """The frames of all texts, in their order; None where one is missing."""
        frames = list(map(self._young.frames.get(key, _NONE).get, texts))
        if None in frames:
            for place, text in enumerate(texts):
                if frames[place] is None:
                    frame = self._old.pop(key, text) or self._young.get(key, text)  # the same text may come twice
                    if frame is None:
                        return None
                    self._put(key, text, frame)
                    frames[place] = frame
        return cast(list[Frame], frames)

    def put(self, key: Hashable, text: str, result: embed_pb2.EmbedResult) -> None:
        """Keep the result of a text, which says that it came from the cache."""
        data = result.SerializeToString()
        frame = _TAG + _varint(len(data)) + data
        self._old.pop(key, text)
        self._put(key, text, Frame(frame, result.tokens, len(frame) + len(text) + _OVERHEAD))

    def _put(self, key: Hashable, text: str, frame: Frame) -> None:
        too_many = key not in self._young.frames and len(self._young.frames) >= _MOST_KEYS
        if too_many or self._young.bytes + frame.size > self._half:
            self._young, self._old = _Generation(), self._young
        if frame.size <= self._half:
            self._young.put(key, text, frame)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
