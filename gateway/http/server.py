"""Serves the HTTP application by uvicorn, on the gateway's event loop and in its lifecycle."""

import asyncio
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.runtime.reloading_files import ReloadingFiles
from services.runtime.settings import ProcessSettings
from services.runtime.tls import pem

TRANSPORT = "transport"
"""The key of a connection's transport in the state of its requests."""

_HEADER_BYTES = 64 << 10
_HEADER_SECONDS = 10.0
"""Maximum time from a request's first byte to the end of its headers, and from a connection to its first request."""
_STALLED_SECONDS = 30.0
"""Maximum time in which a client reads nothing of a response."""
_IDLE_SECONDS = 75
"""Time that an idle connection stays open: longer than load balancers and clients keep theirs."""
_MAX_CONNECTIONS = 10_000


class HttpServer:
    """A `services.runtime.server.Front`: one listening socket, HTTP/1.1, TLS as for gRPC."""

    def __init__(self, application: ASGIApp, settings: ProcessSettings, listen: str) -> None:
        self._listen = listen
        self._socket: socket.socket | None = None
        config = uvicorn.Config(
            application,
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",  # what a client sends wrongly is no event of this process
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            h11_max_incomplete_event_size=_HEADER_BYTES,
            ssl_context_factory=_tls(settings),
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    def bind(self) -> str:
        """Binds the listen address and returns HOST:PORT with the actual port. Raises OSError or ValueError."""
        self._server.config.load()  # reads the certificates
        host, _, port = self._listen.rpartition(":")
        bare = host.strip("[]")
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        dual = bare == "::" and socket.has_dualstack_ipv6()
        self._socket = socket.create_server((bare, int(port)), family=family, dualstack_ipv6=dual, backlog=2048)
        return f"{host}:{self._socket.getsockname()[1]}"

    async def start(self) -> None:
        """Begins to accept requests."""
        assert self._socket is not None
        self._serving = asyncio.create_task(self._server.serve([self._socket]), name="http-server")
        started = asyncio.create_task(self._server.begun.wait())
        await asyncio.wait((started, self._serving), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()

    async def stop(self, grace: float) -> None:
        """Stops to accept. Responses in progress have `grace` seconds to end."""
        if self._serving is None:
            if self._socket is not None:
                self._socket.close()
            return
        self._server.should_exit = True
        await asyncio.wait((self._serving,), timeout=grace)
        if not self._serving.done():
            self._server.force_exit = True
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            for task in list(self._server.server_state.tasks):
                task.cancel()
        await asyncio.wait((self._serving,))


class _Server(uvicorn.Server):
    """Signals are handled by the process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.begun.set()


class _Connection(H11Protocol):
    """Closes the connections of clients that send no request, or do not read the response."""

    _header_timer: asyncio.TimerHandle | None = None
    _stalled_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= _max_connections():
            transport.abort()
            return
        super().connection_made(transport)
        # asyncio does it only for sockets that name their protocol. Without it, each response waits for an ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {**self.app_state, TRANSPORT: transport}
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        if self.transport is not None:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_header()
        elif self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled_timer is not None:
            self._stalled_timer.cancel()
            self._stalled_timer = None

    def _await_header(self) -> None:
        if self._header_timer is None and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(_HEADER_SECONDS, self.transport.abort)

    def _watch(self, unread: int) -> None:
        self._stalled_timer = self.loop.call_later(_STALLED_SECONDS, self._read_on, unread)

    def _read_on(self, unread: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= unread:
            self.transport.abort()
        else:
            self._watch(left)

    def _cancel_timers(self) -> None:
        for timer in (self._header_timer, self._stalled_timer):
            if timer is not None:
                timer.cancel()


def _max_connections() -> int:
    """A quarter of the descriptors at most: gRPC may take half."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_CONNECTIONS if descriptors == resource.RLIM_INFINITY else min(_MAX_CONNECTIONS, descriptors // 4)


def _tls(settings: ProcessSettings) -> Any:
    """A factory of the TLS context, whose certificates are read again when they change; None: plaintext."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    cert, key, ca = settings.tls_cert, settings.tls_key, settings.tls_ca
    files = ReloadingFiles(*(path for path in (key, cert, ca) if path), check=pem(cert, key, ca))
    current = files.read(), _context(cert, key, ca)

    def renew(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        nonlocal current
        contents = files.read()
        if contents is not current[0]:
            current = contents, _context(cert, key, ca)
        connection.context = current[1]

    first = _context(cert, key, ca)
    first.sni_callback = renew  # called at each handshake, with or without a name
    return lambda config, default: first


def _context(cert: Path, key: Path, ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["http/1.1"])
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca)
    return context
