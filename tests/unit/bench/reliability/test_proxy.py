"""What a caller and a server see of each fault, over real sockets."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from bench.reliability.proxy import FAULTS, Proxy

SOON, LATE_S = 20.0, 0.15


class Echo:
    """A server that sends back what it is sent, a connection at a time. It remembers what it got."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=[connection], daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    self.received += data
                    connection.sendall(data)
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.address) as between:
        yield between


def connected(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    caller = socket.create_connection((host, int(port)), SOON)
    assert exchange(caller, b"hello") == b"hello"
    return caller


def exchange(caller: socket.socket, data: bytes) -> bytes:
    caller.sendall(data)
    answer = b""
    while len(answer) < len(data) and (more := caller.recv(1 << 16)):
        answer += more
    return answer


def ended(caller: socket.socket, data: bytes = b"x") -> bool:
    """Whether what is sent meets the end of the connection."""
    try:
        caller.sendall(data)
        return caller.recv(1) == b"" and data == b"x"
    except ConnectionError:
        return True


def test_everything_passes_without_a_fault(proxy: Proxy) -> None:
    data = bytes(range(256)) * 4000
    with connected(proxy) as caller:
        sender = threading.Thread(target=caller.sendall, args=[data])
        sender.start()
        answer = b""
        while len(answer) < len(data):
            answer += caller.recv(1 << 16)
        sender.join()
        assert answer == data


def test_latency_is_added_in_both_directions(proxy: Proxy) -> None:
    with connected(proxy) as caller:
        proxy.begin("latency", LATE_S)
        begun = time.monotonic()
        assert exchange(caller, b"late") == b"late"
        assert time.monotonic() - begun >= 2 * LATE_S
        proxy.end()
        assert exchange(caller, b"again") == b"again"


def test_reset_ends_old_and_new_connections(proxy: Proxy) -> None:
    with connected(proxy) as caller:
        proxy.begin("reset")
        with pytest.raises(ConnectionResetError):
            caller.recv(1)
    host, _, port = proxy.address.rpartition(":")
    with suppress(ConnectionResetError), socket.create_connection((host, int(port)), SOON) as another:
        assert ended(another)  # if it was not reset before connect() returned
    proxy.end()
    connected(proxy).close()


def test_a_black_hole_takes_everything_and_loses_it(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as caller:
        proxy.begin("black hole")
        caller.sendall(b"lost" * 1_000_000)  # more than buffers hold: it is taken
        caller.settimeout(0.2)
        with pytest.raises(TimeoutError):
            caller.recv(1)
        caller.settimeout(SOON)
        proxy.end()
        with pytest.raises(ConnectionResetError):
            caller.recv(1)
    assert echo.received == b"hello"


def test_a_slow_close_says_the_end_before_it_resets(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as caller:
        proxy.begin("slow close", LATE_S)
        assert caller.recv(1) == b""
        while not ended(caller, b"lost" * 10_000):
            pass
    assert b"lost" not in echo.received


def test_a_partition_delivers_when_it_ends(proxy: Proxy) -> None:
    with connected(proxy) as caller:
        proxy.begin("partition")
        caller.sendall(b"kept")
        caller.settimeout(0.2)
        with pytest.raises(TimeoutError):
            caller.recv(1)
        caller.settimeout(SOON)
        proxy.end()
        assert caller.recv(4) == b"kept"


def test_an_unknown_fault_is_refused(proxy: Proxy) -> None:
    assert len(FAULTS) == 5
    with pytest.raises(ValueError, match="sharks is none of latency"):
        proxy.begin("sharks")
