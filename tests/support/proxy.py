"""A TCP proxy between client and server that can be slow, swallow everything, hold a request back, or lose a reply."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.silent import cut


class Caught:
    """A request that is held back until `release` is set, or whose reply is lost."""

    def __init__(self, marker: bytes, lose: bool) -> None:
        self.marker, self.lose = marker, lose
        self.arrived, self.release, self.answered = asyncio.Event(), asyncio.Event(), asyncio.Event()


class Proxy:
    """Passes bytes on after `delay_s`; or not at all."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self.delay_s = 0.0
        self._open = asyncio.Event()
        self._open.set()
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._traps: list[Caught] = []

    def hold(self, marker: bytes) -> Caught:
        """The next request that contains `marker` waits for `release`, whatever becomes of its sender."""
        self._traps.append(Caught(marker, lose=False))
        return self._traps[-1]

    def lose_reply(self, marker: bytes) -> Caught:
        """The next request that contains `marker` passes; when it is answered, the connection is cut instead."""
        caught = Caught(marker, lose=True)
        caught.release.set()
        self._traps.append(caught)
        return caught

    def swallow(self, everything: bool) -> None:
        """From now on nothing passes; or what was held back and everything after it does."""
        if everything:
            self._open.clear()
        else:
            self._open.set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        self._writers.append(writer)  # at once: the task may be cancelled before its first step
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cuts all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await cut(self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers, pumps = [writer], []
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
            writers.append(up_writer)
            self._writers.append(up_writer)
            caught: list[Caught] = []
            pumps.append(asyncio.create_task(self._requests(reader, up_writer, caught)))
            pumps.append(asyncio.create_task(self._replies(up_reader, writer, caught)))
            await asyncio.gather(*pumps)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for one in writers:
                one.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caught: list[Caught]) -> None:
        while data := await reader.read(1 << 20):
            for trap in [trap for trap in self._traps if trap.marker in data]:
                self._traps.remove(trap)
                caught.append(trap)
                trap.arrived.set()
                await trap.release.wait()
            await self._pass(data, writer)
        writer.write_eof()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caught: list[Caught]) -> None:
        while data := await reader.read(1 << 20):
            for trap in caught:
                trap.answered.set()
                if trap.lose:
                    raise ConnectionResetError
            caught.clear()
            await self._pass(data, writer)
        writer.write_eof()

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.delay_s)
        await self._open.wait()
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def proxy(port: int, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """A proxy in front of a local server until the block ends."""
    made = Proxy(host, port)
    server = await asyncio.start_server(made.accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()
        await server.wait_closed()
