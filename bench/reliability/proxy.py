"""A TCP proxy that behaves like a bad network.

| fault | what it does |
|---|---|
| `latency` | every piece of data is late by `delay_s`, in both directions |
| `reset` | connections are reset (RST), those that are open and new ones |
| `black hole` | connections stay up, whatever is sent is lost; when the fault ends they are reset |
| `slow close` | the caller is told the end at once (FIN), what it still sends is lost, it is reset after `delay_s` |
| `partition` | nothing passes, but it is kept, as TCP would send it again: it arrives when the fault ends |
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

FAULTS = ("latency", "reset", "black hole", "slow close", "partition")
_CHUNK = 1 << 18
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time: close() sends RST
T = TypeVar("T")


class _Link:
    """One connection of a caller, and the one to the server that belongs to it."""

    def __init__(self, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.writers = writers
        self.lost = False  # something that was sent has not arrived

    def reset(self) -> None:
        for writer in self.writers:
            connection = writer.get_extra_info("socket")
            with suppress(OSError, AttributeError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Proxy:
    """Stands before the server at `upstream` (HOST:PORT) until the block ends; `address` is its own.

    Runs on a thread, so that its users need no event loop. Passes everything on, until it is told a fault.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault, self._delay_s = "", 0.0
        self._open = asyncio.Event()
        self._open.set()
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._on_loop(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def begin(self, fault: str, delay_s: float = 0.2) -> None:
        """From now on the network has this fault."""
        if fault not in FAULTS:
            raise ValueError(f"{fault} is none of {', '.join(FAULTS)}")
        self._on_loop(self._begin(fault, delay_s))

    def end(self) -> None:
        """From now on everything passes."""
        self._on_loop(self._end())

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _begin(self, fault: str, delay_s: float) -> None:
        self._fault, self._delay_s = fault, delay_s
        if fault == "partition":
            self._open.clear()
        for link in list(self._links):
            if fault == "reset":
                link.reset()
            elif fault == "slow close":
                self._keep(self._close_slowly(link))

    async def _end(self) -> None:
        self._fault, self._delay_s = "", 0.0
        self._open.set()
        for link in list(self._links):
            if link.lost:
                link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._keep(self._serve(reader, writer))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.transport.abort()
            return
        link = _Link((writer, up_writer))
        self._links.add(link)
        if self._fault == "reset":
            link.reset()
        elif self._fault == "slow close":
            self._keep(self._close_slowly(link))
        pumps = [
            asyncio.ensure_future(self._pump(link, reader, up_writer)),
            asyncio.ensure_future(self._pump(link, up_reader, writer)),
        ]
        try:
            await asyncio.gather(*pumps)
        except OSError:
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            self._links.discard(link)
            for one in link.writers:
                one.close()

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes one direction on. Data is late, not slow: what comes meanwhile is read, and has its own delay."""
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)
        passing = asyncio.ensure_future(self._pass(late, writer))
        try:
            while data := await reader.read(_CHUNK):
                if self._fault in ("black hole", "slow close"):
                    link.lost = True
                else:
                    await late.put((self._loop.time() + self._delay_s * (self._fault == "latency"), data))
            await late.put((0.0, b""))
            await passing
        finally:
            passing.cancel()

    async def _pass(self, late: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await late.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._open.wait()
            if not data:
                with suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    async def _close_slowly(self, link: _Link) -> None:
        delay_s = self._delay_s
        with suppress(OSError, RuntimeError):
            link.writers[0].write_eof()
        await asyncio.sleep(delay_s)
        link.reset()

    async def _close(self) -> None:
        self._server.close()
        self._open.set()
        for link in list(self._links):
            link.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
