"""Reads a request's body within limits: its size on the wire and unpacked, and the number of its JSON values."""

import zlib
from collections.abc import AsyncIterator, Iterator

from starlette.requests import ClientDisconnect, Request

from gateway.http.errors import HttpProblem

# A value of JSON can take fifty times its bytes in memory: `[[],[],…`.
_MAX_VALUES = 1 << 21
_COUNTED = (b"[", b"{", b",")
_GZIP_WINDOW = 31  # zlib's number for gzip


class ClientGone(Exception):  # noqa: N818 - nobody sees it
    """The client has closed the connection: there is nobody to answer."""


async def whole(request: Request, limit: int) -> bytes:
    """The body, unpacked. Raises HttpProblem with 413 (too large), 415 (another coding) or 400 (no gzip)."""
    data = bytearray()
    async for chunk in chunks(request, limit):
        data += chunk
    return bytes(data)


async def lines(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The lines of a body of any length, each of at most `limit` bytes and not empty."""
    rest = bytearray()
    async for chunk in chunks(request, None):
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            rest += chunk[start:end]
            _check_size(len(rest), limit)
            if line := bytes(rest).strip():
                yield line
            rest.clear()
            start = end + 1
        rest += chunk[start:]
        _check_size(len(rest), limit)
    if line := bytes(rest).strip():
        yield line


async def chunks(request: Request, limit: int | None) -> AsyncIterator[bytes]:
    """The body in pieces, unpacked; at most `limit` bytes of it."""
    coding = request.headers.get("content-encoding", "identity").lower().strip()
    if coding not in ("identity", "gzip", ""):
        raise HttpProblem(415, f'The body has the coding "{coding[:40]}"; send it as it is, or with gzip.')
    declared = request.headers.get("content-length", "")
    if limit is not None and declared.isdigit():
        _check_size(int(declared), limit)
    unpacker = zlib.decompressobj(_GZIP_WINDOW) if coding == "gzip" else None
    size = 0
    try:
        async for chunk in request.stream():
            for piece in _unpacked(unpacker, chunk) if unpacker else (chunk,):
                size += len(piece)
                if limit is not None:
                    _check_size(size, limit)
                yield piece
    except ClientDisconnect:
        raise ClientGone from None
    if unpacker is not None and (not unpacker.eof or unpacker.unused_data):
        raise HttpProblem(400, "The body is not a valid gzip stream.")


def check_values(data: bytes, most: int = _MAX_VALUES) -> None:
    """Refuses JSON that holds more values than any valid request has, before it is parsed."""
    if len(data) > most and sum(map(data.count, _COUNTED)) > most:
        raise HttpProblem(413, f"The body holds more than {most} JSON values; send it in parts.")


_PIECE = 1 << 20


def _unpacked(unpacker: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
    while data:
        try:
            piece = unpacker.decompress(data, _PIECE)
        except zlib.error:
            raise HttpProblem(400, "The body is not a valid gzip stream.") from None
        data = unpacker.unconsumed_tail
        yield piece
        if unpacker.eof:
            return


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise HttpProblem(413, f"The body has more than {limit} bytes; send it in parts.")
