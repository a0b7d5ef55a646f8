"""What kube-proxy does for a Service with an address: each new connection goes to one ready pod, and stays there."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable


class ServiceAddress:
    """Listens on the Service's address; `ready` gives the addresses (host, port) of the pods that take connections."""

    def __init__(self, ready: Callable[[], list[tuple[str, int]]]) -> None:
        self._ready = ready
        self._turn = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def serve(self, host: str, port: int) -> None:
        """Listens. OSError where the port is taken."""
        self._server = await asyncio.start_server(self._connected, host, port)

    async def close(self) -> None:
        """Ends everything."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            pods = self._ready()
            if not pods:
                return
            onward = await asyncio.open_connection(*pods[next(self._turn) % len(pods)])
            try:
                await asyncio.gather(_pump(reader, onward[1]), _pump(onward[0], writer))
            finally:
                onward[1].close()
        except (OSError, asyncio.CancelledError):
            pass  # the caller sees its connection end
        finally:
            writer.close()
            self._tasks.discard(task)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
