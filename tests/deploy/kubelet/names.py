"""A DNS server that answers as a cluster's does: Services' names, by what is ready at the moment."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

_A, _OK, _NO_SUCH_NAME = 1, 0, 3
_TTL_S = 5


class Names(asyncio.DatagramProtocol):
    """Answers A queries from `addresses(name)`: None for a name that does not exist. Everything else is empty."""

    def __init__(self, addresses: Callable[[str], list[str] | None]) -> None:
        self._addresses = addresses
        self._transport: asyncio.DatagramTransport | None = None
        self.asked: list[str] = []

    @classmethod
    async def serve(cls, host: str, addresses: Callable[[str], list[str] | None]) -> Names:
        """Serves on port 53 of `host`: no other can be said in resolv.conf. OSError where that is not allowed."""
        loop = asyncio.get_running_loop()
        _, names = await loop.create_datagram_endpoint(lambda: cls(addresses), (host, 53))
        return names

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        labels, end = [], 12
        while length := data[end]:
            labels.append(data[end + 1 : end + 1 + length].decode())
            end += 1 + length
        (kind,) = struct.unpack_from("!H", data, end + 1)
        question = data[12 : end + 5]
        found = self._addresses(".".join(labels).lower())
        records = [b"\xc0\x0c" + struct.pack("!HHIH", _A, 1, _TTL_S, 4) + socket.inet_aton(a) for a in found or []]
        if kind != _A:
            records = []
        else:
            self.asked.append(".".join(labels))
        code = _NO_SUCH_NAME if found is None else _OK
        header = data[:2] + struct.pack("!HHHHH", 0x8580 | code, 1, len(records), 0, 0)
        assert self._transport is not None
        self._transport.sendto(header + question + b"".join(records), addr)

    def close(self) -> None:
        """Stops answering."""
        assert self._transport is not None
        self._transport.close()
