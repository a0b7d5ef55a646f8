"""HTTP clients of a gateway in the test's own process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2 as httpx

from tests.support.gateway import Running


@asynccontextmanager
async def client(gateway: Running, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client without proxies, whose requests take paths."""
    address = f"http://{gateway.served.http}"
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=30, **options) as http:
        yield http


async def exchanged(gateway: Running, sent: bytes, *, whole: bool = False) -> bytes:
    """The head of the response to raw bytes, or all that comes until the server closes the connection."""
    host, _, port = gateway.served.http.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(sent)
        return await (reader.read() if whole else reader.readuntil(b"\r\n\r\n"))
    finally:
        writer.transport.abort()
