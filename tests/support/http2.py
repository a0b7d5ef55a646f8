"""HTTP/2 by hand: frames that no library would send, and just enough of HPACK to read grpc's statuses."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 0x1, 0x4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def settings(**values: int) -> bytes:
    """Names are numbers: `settings(_4=0)`."""
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", int(name[1:]), value) for name, value in values.items()))


def hello(window: int = 65_535) -> bytes:
    """The client's preface. No header is indexed, so each is read by itself."""
    values = struct.pack(">HI", HEADER_TABLE_SIZE, 0) + struct.pack(">HI", INITIAL_WINDOW_SIZE, window)
    return PREFACE + frame(SETTINGS, payload=values)


def _length(value: int) -> bytes:
    if value < 127:
        return bytes((value,))
    value -= 127
    coded = bytearray((127,))
    while value > 127:
        coded.append(value & 127 | 128)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def literals(headers: Iterable[tuple[str, bytes]]) -> bytes:
    """HPACK without any table or Huffman code."""
    coded = bytearray()
    for name, value in headers:
        coded += b"\x00" + _length(len(name)) + name.encode("latin-1") + _length(len(value)) + value
    return bytes(coded)


def call_headers(method: str, *more: tuple[str, bytes], content_type: bytes = b"application/grpc") -> bytes:
    """The header block of a call."""
    usual = [
        (":method", b"POST"),
        (":scheme", b"http"),
        (":path", method.encode("latin-1")),
        (":authority", b"localhost"),
        ("content-type", content_type),
        ("te", b"trailers"),
    ]
    return literals([*usual, *more])


def message(data: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A gRPC message with its prefix, which may lie about the length."""
    return bytes((compressed,)) + struct.pack(">I", len(data) if length is None else length) + data


def _integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value = block[position] & most
    position += 1
    if value == most:
        shift = 0
        while True:
            byte = block[position]
            position += 1
            value += (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
    return value, position


def headers_of(block: bytes) -> dict[str, bytes]:
    """Headers with a literal name. What is in a table or in Huffman code is not read: grpc-status never is."""
    found: dict[str, bytes] = {}
    position = 0

    def text() -> bytes:
        nonlocal position
        length, position = _integer(block, position, 7)
        position += length
        return block[position - length : position]

    while position < len(block):
        first = block[position]
        if first & 0x80:
            _, position = _integer(block, position, 7)
            continue
        if first & 0xE0 == 0x20:
            _, position = _integer(block, position, 5)
            continue
        index, position = _integer(block, position, 6 if first & 0x40 else 4)
        name = text() if index == 0 else b""
        value = text()
        found[name.decode("latin-1")] = value
    return found


@dataclass
class Connection:
    """What came back on a connection: by stream its grpc-status, its bytes, or the code of its reset."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    statuses: dict[int, int] = field(default_factory=dict)
    messages: dict[int, str] = field(default_factory=dict)
    resets: dict[int, int] = field(default_factory=dict)
    goaway: int | None = None
    closed: bool = False

    async def send(self, *frames: bytes) -> None:
        """Ignores a peer that has hung up: that is an answer."""
        try:
            self.writer.write(b"".join(frames))
            await self.writer.drain()
        except OSError:
            self.closed = True

    async def answered(self, streams: Iterable[int]) -> None:
        """Returns when each stream has a status or a reset, or the connection has ended."""
        waiting = set(streams)
        while not self.closed and waiting - self.statuses.keys() - self.resets.keys():
            await self._read()

    async def ended(self) -> None:
        """Returns when the peer has closed the connection."""
        while not self.closed:
            await self._read()

    async def _read(self) -> None:
        try:
            head = await self.reader.readexactly(9)
            kind, flags = head[3], head[4]
            stream = struct.unpack(">I", head[5:9])[0] & 0x7FFFFFFF
            payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
        except (OSError, EOFError):
            self.closed = True
            return
        if kind == HEADERS:
            headers = headers_of(payload)
            if "grpc-status" in headers:
                self.statuses[stream] = int(headers["grpc-status"])
                self.messages[stream] = headers.get("grpc-message", b"").decode("latin-1")
        elif kind == RST_STREAM:
            self.resets.setdefault(stream, struct.unpack(">I", payload)[0])
        elif kind == GOAWAY:
            self.goaway = struct.unpack(">I", payload[4:8])[0]
        elif kind == SETTINGS and not flags & ACK:
            await self.send(frame(SETTINGS, ACK))
        elif kind == PING and not flags & ACK:
            await self.send(frame(PING, ACK, payload=payload))


@asynccontextmanager
async def connection(address: str) -> AsyncIterator[Connection]:
    """A bare TCP connection, without the preface."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()
