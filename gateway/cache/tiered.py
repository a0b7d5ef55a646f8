"""The cache of one kind of entry: an LRU in this process, in front of the shared cache in Redis."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from gateway.cache.lru import Lru, Sized
from gateway.cache.redis_cache import RedisCache
from gateway.telemetry import GatewayMetrics
from services.runtime.telemetry import names

E = TypeVar("E", bound=Sized)


class Codec(Protocol[E]):
    """Encodes and decodes entries."""

    def pack(self, key: bytes, entry: E) -> bytes:
        """The value to store under `key`."""

    def unpack(self, key: bytes, value: bytes) -> E | None:
        """The entry, or None if the value is not valid."""


class TieredCache(Generic[E]):
    """Entries by key. Without a `remote` there is only the LRU."""

    def __init__(self, codec: Codec[E], local_bytes: int, remote: RedisCache | None, metrics: GatewayMetrics) -> None:
        self._codec = codec
        self._local: Lru[bytes, E] = Lru(local_bytes)
        self._remote = remote
        self._metrics = metrics

    def peek(self, key: bytes) -> E | None:
        """The entry if this process has it."""
        return self._local.get(key)

    async def fetch(self, keys: Sequence[bytes]) -> list[E | None]:
        """The entry of each key in Redis, None if it has none. Never raises; the wait is bounded."""
        if self._remote is None:
            return [None] * len(keys)
        entries: list[E | None] = []
        for key, value in zip(keys, await self._remote.read(keys), strict=True):
            entry = None if value is None else self._codec.unpack(key, value)
            if entry is not None:
                self._local.put(key, entry)
            elif value is not None:
                self._metrics.cache_error("read", names.CacheFault.INVALID_VALUE)
            entries.append(entry)
        return entries

    def store(self, key: bytes, entry: E) -> None:
        """Keeps an entry: at once in this process, soon in Redis."""
        self._local.put(key, entry)
        if self._remote is not None:
            self._remote.write(key, self._codec.pack(key, entry))
