"""A map with a limit in bytes, which drops its least recently used values."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """A value that knows its size."""

    @property
    def size(self) -> int:
        """Approximate bytes in memory."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)


class Lru(Generic[K, V]):
    """Keeps the most recently used values that fit in `limit_bytes`; 0: none."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._entries: OrderedDict[K, V] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """Bytes held."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which becomes the most recently used, or None."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keeps a value, and drops the least recently used ones over the limit."""
        old = self._entries.pop(key, None)
        if old is not None:
            self._bytes -= old.size
        self._entries[key] = value
        self._bytes += value.size
        while self._bytes > self._limit:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.size
