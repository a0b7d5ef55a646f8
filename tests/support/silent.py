"""A server that accepts connections, reads, and never says a word."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress


async def cut(writers: Iterable[asyncio.StreamWriter]) -> None:
    """Closes connections at once, whatever the other side has not read, and waits until they are closed."""
    for writer in writers:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """HOST:PORT of such a server, until the block ends."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while await reader.read(1 << 16):
            pass

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await cut(writers)
