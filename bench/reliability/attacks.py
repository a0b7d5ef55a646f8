"""What a hostile client sends: bytes that are no HTTP/2, frames that break its rules, floods, calls that are noise."""

import asyncio
import random
import struct
from collections import Counter
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc

from bench.reliability.calls import ONCE, Calls, channel
from bench.reliability.outcomes import failure
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _END_HEADERS = 1, 4
_ANSWER_S, _CALL_S = 0.5, 10.0
_CONNECTIONS, _CALLS = 64, 16  # at once
_FILES = (embed_pb2.DESCRIPTOR, rerank_pb2.DESCRIPTOR, retrieval_pb2.DESCRIPTOR)
METHODS = {
    service.full_name: [f"/{service.full_name}/{method.name}" for method in service.methods]
    for file in _FILES
    for service in file.services_by_name.values()
}
"""Paths of all methods, by service."""
Stream = Callable[..., AsyncIterable[bytes]]


async def garbage(address: str, count: int, chance: random.Random) -> Counter[str]:
    """Connections that send random bytes."""
    return await _together(_talk(address, [chance.randbytes(chance.randint(1, 4096))]) for _ in range(count))


async def frames(address: str, count: int, chance: random.Random) -> Counter[str]:
    """Connections that begin well, then send random frames, the last one cut off."""

    def pieces() -> Iterator[bytes]:
        yield _PREFACE + _frame(_SETTINGS)
        for _ in range(chance.randint(1, 20)):
            payload = chance.randbytes(chance.randint(0, 64))
            yield _frame(chance.randint(0, 12), chance.randint(0, 255), chance.randint(0, 9), payload)
        yield _frame(_HEADERS, _END_HEADERS, 11, chance.randbytes(80))[: chance.randint(1, 80)]

    return await _together(_talk(address, list(pieces())) for _ in range(count))


async def rapid_reset(address: str, count: int, path: str) -> Counter[str]:
    """One connection that opens calls and cancels them at once."""

    def pieces() -> Iterator[bytes]:
        yield _PREFACE + _frame(_SETTINGS)
        for number in range(count):
            stream = 2 * number + 1
            yield _call(stream, path) + _frame(_RST_STREAM, 0, stream, struct.pack(">I", 8))

    return await _together([_talk(address, pieces())])


async def floods(address: str, count: int) -> Counter[str]:
    """Connections that send nothing but pings, settings and updates of windows."""
    kinds = (
        _frame(_PING, 0, 0, bytes(8)),
        _frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)),
        _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)),
    )
    return await _together(_talk(address, [_PREFACE + _frame(_SETTINGS), *[kind] * count]) for kind in kinds)


async def bad_gzip(address: str, count: int, path: str, chance: random.Random) -> Counter[str]:
    """Calls that say their message is compressed, which it is not."""
    message = b"\x01" + struct.pack(">I", 64) + chance.randbytes(64)

    def pieces() -> Iterator[bytes]:
        yield _PREFACE + _frame(_SETTINGS)
        for number in range(count):
            stream = 2 * number + 1
            yield _call(stream, path, ("grpc-encoding", "gzip")) + _frame(_DATA, _END_STREAM, stream, message)

    return await _together([_talk(address, pieces())])


async def slow_readers(address: str, count: int, path: str, seconds: float) -> Counter[str]:
    """Connections that open a call, send a byte of it, and then neither read nor write."""
    begun = [_PREFACE + _frame(_SETTINGS), _call(1, path), _frame(_DATA, 0, 1, b"\0")]
    return await _together((_talk(address, begun, hold_s=seconds) for _ in range(count)), count)


async def noise(address: str, services: Sequence[str], count: int, chance: random.Random) -> Counter[str]:
    """Calls of every method whose messages are random bytes, or good messages with some bytes changed. Their codes."""
    good = [Calls(kind, 1, 3, 2, 3, "").request(7).SerializeToString() for kind in ("embed", "rerank", "inline")]
    paths = [path for service in services for path in METHODS[service]]
    connection = channel(address, ONCE)

    async def one() -> str:
        message = chance.randbytes(chance.randint(0, 300)) if chance.random() < 0.5 else _changed(chance, good)
        method: Stream = connection.stream_stream(chance.choice(paths), None, None)
        try:
            async for _ in method(iter([message]), timeout=_CALL_S):
                pass
        except grpc.aio.AioRpcError as error:
            code, reason, *_ = failure(error)
            return " ".join(filter(None, (code, reason)))
        except asyncio.CancelledError:
            return "CANCELLED"
        return "OK"

    try:
        return await _together((one() for _ in range(count)), _CALLS)
    finally:
        await connection.close()


def _changed(chance: random.Random, messages: Sequence[bytes]) -> bytes:
    message = bytearray(chance.choice(messages))
    for _ in range(chance.randint(1, 4)):
        message[chance.randrange(len(message))] = chance.randrange(256)
    return bytes(message[: chance.randint(1, len(message))] if chance.random() < 0.3 else message)


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _call(stream: int, path: str, *more: tuple[str, str]) -> bytes:
    """The HEADERS of a call, each header as a literal that is not indexed."""
    headers = [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers"),
        ("content-type", "application/grpc"), *more,
    ]  # fmt: skip
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in headers
    )
    return _frame(_HEADERS, _END_HEADERS, stream, block)


async def _talk(address: str, pieces: Iterable[bytes], hold_s: float = 0.0) -> str:
    """Sends all and reads what comes until the end, or for a while; `hold_s`: then keeps silent so long."""
    host, _, port = address.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return "refused"
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), _ANSWER_S)
        if hold_s:
            await asyncio.sleep(hold_s)
            return "held"
        async with asyncio.timeout(_ANSWER_S):
            while await reader.read(1 << 16):
                pass
    except TimeoutError:
        return "kept"
    except OSError:
        return "reset"
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()
    return "closed"


async def _together(work: Iterable[Coroutine[Any, Any, str]], at_once: int = _CONNECTIONS) -> Counter[str]:
    """So many at a time, and how each ended."""
    waiting, ends = iter(work), Counter[str]()

    async def worker() -> None:
        for one in waiting:
            ends[await one] += 1

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return ends
