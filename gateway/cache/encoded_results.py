"""Serialised results of cached texts: if all results of a request are here, its response is a concatenation.

Serialising a hundred vectors of 1024 dimensions takes longer than gRPC itself takes to send them.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import cast

from winnow.embed.v1 import embed_pb2

# Field 1 (EmbedResponse.results), length-delimited.
_TAG = bytes((1 << 3 | 2,))
_OVERHEAD = 250
_MOST_KEYS = 2048  # of a generation: a key may hold a long instruction, which the size of a result does not include


@dataclass(frozen=True, slots=True, eq=False)
class EncodedResult:
    """One serialised entry of `EmbedResponse.results`, with tag and length."""

    data: bytes
    tokens: int
    size: int


_NONE: dict[str, EncodedResult] = {}


class _Generation:
    """Results by options, then by text."""

    def __init__(self) -> None:
        self.results: dict[Hashable, dict[str, EncodedResult]] = {}
        self.bytes = 0

    def put(self, key: Hashable, text: str, result: EncodedResult) -> None:
        known = self.results.setdefault(key, {})
        old = known.get(text)
        self.bytes += result.size - (0 if old is None else old.size)
        known[text] = result

    def get(self, key: Hashable, text: str) -> EncodedResult | None:
        return self.results.get(key, _NONE).get(text)

    def pop(self, key: Hashable, text: str) -> EncodedResult | None:
        result = self.results[key].pop(text, None) if key in self.results else None
        if result is not None:
            self.bytes -= result.size
        return result


class EncodedResultCache:
    """Results by text, for each set of options (`key`), in at most `limit_bytes`.

    An approximate LRU in two generations, so that a hit costs one dict look-up: when the young generation fills half
    the limit, it becomes the old one, and what is left in the old one is dropped.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._half = limit_bytes // 2
        self._young, self._old = _Generation(), _Generation()

    @property
    def held_bytes(self) -> int:
        """Approximate bytes held."""
        return self._young.bytes + self._old.bytes

    def get(self, key: Hashable, texts: Sequence[str]) -> list[EncodedResult] | None:
        """The results of all texts, in their order; None if one is missing."""
        results = list(map(self._young.results.get(key, _NONE).get, texts))
        if None in results:
            for place, text in enumerate(texts):
                if results[place] is None:
                    result = self._old.pop(key, text) or self._young.get(key, text)  # the same text may come twice
                    if result is None:
                        return None
                    self._put(key, text, result)
                    results[place] = result
        return cast(list[EncodedResult], results)

    def put(self, key: Hashable, text: str, result: embed_pb2.EmbedResult) -> None:
        """Keeps the result of a text, with `cache_hit` set."""
        data = result.SerializeToString()
        entry = _TAG + _varint(len(data)) + data
        self._old.pop(key, text)
        self._put(key, text, EncodedResult(entry, result.tokens, len(entry) + len(text) + _OVERHEAD))

    def _put(self, key: Hashable, text: str, result: EncodedResult) -> None:
        too_many = key not in self._young.results and len(self._young.results) >= _MOST_KEYS
        if too_many or self._young.bytes + result.size > self._half:
            self._young, self._old = _Generation(), self._young
        if result.size <= self._half:
            self._young.put(key, text, result)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
