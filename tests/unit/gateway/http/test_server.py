"""The server's own rules: TLS, and clients that send or read nothing."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http import server
from gateway.http.server import HttpServer
from tests.support.certificates import Certificates
from tests.support.serving import PlainSettings

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@asynccontextmanager
async def serving(application: ASGIApp, **settings: Any) -> AsyncIterator[tuple[str, int]]:
    front = HttpServer(application, PlainSettings(**settings), "127.0.0.1:0")
    host, _, port = front.bind().rpartition(":")
    await front.start()
    try:
        yield host, int(port)
    finally:
        await front.stop(0)


async def asked(address: tuple[str, int], sent: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """All that the server sends until it closes the connection."""
    reader, writer = await asyncio.open_connection(*address, ssl=context)
    try:
        writer.write(sent)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def send_on(client: socket.socket) -> None:
    """Sends and reads nothing, until that fails."""
    while True:
        await asyncio.get_running_loop().sock_sendall(client, b"x")
        await asyncio.sleep(0)


async def test_a_renewed_certificate_serves_the_next_connection(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    async with serving(Response(b"ok"), tls_cert=files.cert, tls_key=files.key) as address:
        for _ in range(2):
            context = ssl.create_default_context(cafile=str(files.ca))
            assert (await asked(address, REQUEST, context)).endswith(b"ok")
            old = context
            await asyncio.to_thread(files.issue)
        with pytest.raises(ssl.SSLError):
            await asked(address, REQUEST, old)


async def test_clients_that_send_no_whole_header_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEADER_SECONDS", 0.01)
    async with serving(Response(b"ok")) as address:
        for sent in (b"", b"GET / HTT", REQUEST[:-2]):
            assert await asked(address, sent) == b""


async def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_STALLED_SECONDS", 0.01)
    arrived = asyncio.Event()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        arrived.set()
        await Response(b"x" * (64 << 20))(scope, receive, send)

    loop = asyncio.get_running_loop()
    async with serving(application) as address:
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, REQUEST)
            await arrived.wait()
            with pytest.raises(ConnectionError):
                await send_on(client)


async def test_connections_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_max_connections", lambda: 1)
    async with serving(Response(b"ok")) as address:
        reader, first = await asyncio.open_connection(*address)
        first.write(REQUEST.replace(b"close", b"keep-alive"))
        await reader.readuntil(b"ok")
        assert await asked(address, REQUEST) == b""
        first.transport.abort()
        await first.wait_closed()
