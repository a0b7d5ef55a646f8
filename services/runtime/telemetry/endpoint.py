"""The Prometheus endpoint: one thread for all connections, with timeouts.

`prometheus_client` produces the responses, the standard library handles HTTP. The server of `prometheus_client` is not
used, because it has a thread per connection and no timeout for idle ones.
"""

from __future__ import annotations

import asyncio
import errno
import io
import socket
import threading
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app

_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_MOST_CONNECTIONS = 64
_MOST_REQUEST_BYTES = 1 << 14
_CLOSED_SECONDS = 2.0


class Endpoint:
    """Serves the registry's metrics until `close`. Raises OSError if the address cannot be bound.

    Receiving a request and sending the response each have a timeout of a few seconds. If there are more than 64
    connections, the oldest is closed, so that idle connections cannot prevent a scrape.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        listening = _listening(host, port)
        self.port: int = listening.getsockname()[1]
        self._app = cast(Any, make_wsgi_app(registry))
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}  # oldest first
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closes all connections and releases the port."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(_CLOSED_SECONDS)

    def _run(self, listening: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listening))

    async def _serve(self, listening: socket.socket) -> None:
        server = await asyncio.start_server(self._connected, sock=listening, limit=_MOST_REQUEST_BYTES)
        await self._closing.wait()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:  # of open and of new connections
            for writer in self._open:
                writer.transport.abort()
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        server.close()  # last: asyncio loses a connection that is being accepted while its server is closed

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(self._open) >= _MOST_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = asyncio.create_task(self._connection(reader, writer))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handles one request."""
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._answer(head))
            async with asyncio.timeout(_ANSWER_SECONDS):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        connection = _InMemory(head)
        _Handler(cast(Any, connection), ("", 0), cast(Any, self))
        return bytes(connection.sent)

    # Required of the server by WSGIRequestHandler.

    base_environ: dict[str, str] = {}  # noqa: RUF012 - copied by the handler

    def get_app(self) -> Any:
        """The WSGI application."""
        return self._app


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class _InMemory:
    """A connection whose request has been received completely."""

    def __init__(self, received: bytes) -> None:
        self._received, self.sent = received, bytearray()

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._received)

    def sendall(self, data: bytes) -> None:
        self.sent += data


def _listening(host: str, port: int) -> socket.socket:
    try:
        return _bound(host, port)
    except OSError as error:
        # Containers without IPv6 are common; grpc has the same fallback.
        if host != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bound("0.0.0.0", port)


def _bound(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
