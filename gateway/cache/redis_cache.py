"""The shared cache in Redis: reads with a short timeout, writes in the background, no errors for callers."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from gateway.cache.breaker import Breaker
from gateway.redis.client import QueueTimeoutError, RedisClient, Unreachable
from gateway.redis.faults import fault_of
from gateway.telemetry import GatewayMetrics
from services.runtime.telemetry import names

_READ_CHUNK = 256  # keys in one MGET: a larger reply would block the event loop for more than half a millisecond
_WRITE_CHUNK = 64
_TTL_JITTER = 0.1
_PROBE = b"winnow:probe"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RedisCacheSettings:
    """Settings of the shared cache."""

    ttl_s: int
    read_timeout_s: float  # maximum wait of a read
    write_timeout_s: float
    queue_bytes: int  # maximum bytes queued to be written; more is dropped
    breaker_failures: int
    breaker_open_s: float


class RedisCache:
    """Opaque values by key. Call `start` before and `close` after its use."""

    def __init__(self, client: RedisClient, settings: RedisCacheSettings, metrics: GatewayMetrics) -> None:
        self._client = client
        self._settings = settings
        self._metrics = metrics
        # One breaker each: a Redis that is full or read-only still answers reads.
        self._reads = Breaker(settings.breaker_failures, settings.breaker_open_s)
        self._writes = Breaker(settings.breaker_failures, settings.breaker_open_s)
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._writer: asyncio.Task[None] | None = None
        self._first_look: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the writer, and connects in the background."""
        self._writer = asyncio.create_task(self._write_forever(), name="cache-writer")
        self._first_look = asyncio.create_task(self._look(), name="cache-look")

    async def _look(self) -> None:
        """Connects, and runs the cache's commands without effect, so that the client logs which are not permitted."""
        with suppress(*Unreachable):
            await self._client.commands([("SET", _PROBE, "", "XX", "EX", 1)])
            await self._client.get_many([_PROBE])

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None if there is none or Redis did not reply in time. Never raises."""
        nothing: list[bytes | None] = [None] * len(keys)
        if not keys or not self._reads.allow():
            return nothing
        chunks = [keys[start : start + _READ_CHUNK] for start in range(0, len(keys), _READ_CHUNK)]
        try:
            replies = await asyncio.gather(
                *(self._client.get_many(chunk, self._settings.read_timeout_s) for chunk in chunks)
            )
        except Unreachable as error:
            self._failed("read", self._reads, error)
            return nothing
        except Exception:
            log.exception("cache read failed")
            return nothing
        self._reads.success()
        return [value for reply in replies for value in reply]

    def _failed(self, operation: str, breaker: Breaker, error: Exception) -> None:
        if isinstance(error, QueueTimeoutError):  # Redis is healthy: this process has too many concurrent calls
            self._metrics.cache_error(operation, names.CacheFault.QUEUE_TIMEOUT)
        else:
            breaker.failure()
            self._metrics.cache_error(operation, fault_of(error))

    def write(self, key: bytes, value: bytes) -> None:
        """Queues a value to be stored, or drops it if the queue is full. Never waits, never raises."""
        size = len(key) + len(value)
        if self._queued_bytes + size > self._settings.queue_bytes:
            self._metrics.cache_error("write", names.CacheFault.QUEUE_FULL)
            return
        self._queue.append((key, value))
        self._queued_bytes += size
        self._written.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Waits until everything queued so far was written or dropped."""
        await self._written.wait()

    async def _write_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(_WRITE_CHUNK, len(self._queue)))]
                self._queued_bytes -= sum(len(key) + len(value) for key, value in batch)
                if self._writes.allow():
                    await self._write(batch)
            self._written.set()

    async def _write(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        def ttl() -> int:
            # Entries written together must not expire together.
            return max(1, round(self._settings.ttl_s * random.uniform(1 - _TTL_JITTER, 1)))

        try:
            replies = await self._client.commands(
                [("SET", key, value, "EX", ttl()) for key, value in batch], budget_s=self._settings.write_timeout_s
            )
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        except Unreachable as error:
            self._failed("write", self._writes, error)
        except Exception:
            self._writes.failure()
            log.exception("cache write failed")
        else:
            self._writes.success()

    async def close(self) -> None:
        """Writes what is queued, for at most the timeout of one write, then stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.write_timeout_s):
                await self.flush()
        tasks = [task for task in (self._first_look, self._writer) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
