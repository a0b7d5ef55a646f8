"""A TCP proxy between client and server that can be slow, or swallow everything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Passes bytes on after `delay_s`; or not at all."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self.delay_s = 0.0
        self._open = asyncio.Event()
        self._open.set()
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def swallow(self, everything: bool) -> None:
        """From now on nothing passes; or what was held back and everything after it does."""
        if everything:
            self._open.clear()
        else:
            self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
            writers.append(up_writer)
            await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for one in writers:
                one.close()
                with suppress(OSError, asyncio.CancelledError):
                    await one.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(self.delay_s)
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def proxy(port: int, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """A proxy in front of a local server until the block ends."""
    made = Proxy(host, port)
    server = await asyncio.start_server(made._serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in list(made._tasks):
            task.cancel()
        await asyncio.gather(*made._tasks, return_exceptions=True)
        await server.wait_closed()
