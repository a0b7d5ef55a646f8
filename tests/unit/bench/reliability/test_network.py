"""Packets through a real namespace; needs root."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.reliability.network import Namespace, unavailable

PORT, SOON, LATE_S = 7007, 20.0, 0.1
ECHO = f"""
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as own:
    own.bind((sys.argv[1], {PORT}))
    print("bound", flush=True)
    while True:
        own.sendto(*own.recvfrom(100))
"""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if missing := unavailable():
        pytest.skip(missing)
    with Namespace() as made:
        yield made


@pytest.fixture
def echo(namespace: Namespace) -> Iterator[socket.socket]:
    """Connected to a server in the namespace that sends back what it is sent."""
    command = [*namespace.command(), sys.executable, "-c", ECHO, namespace.inside]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server, socket.socket(type=socket.SOCK_DGRAM) as own:
        assert server.stdout
        assert server.stdout.readline()
        own.settimeout(SOON)
        own.connect((namespace.inside, PORT))
        yield own
        server.kill()


def test_packets_pass_in_both_directions(echo: socket.socket) -> None:
    echo.send(b"hello")
    assert echo.recv(100) == b"hello"
    assert echo.getsockname()[0] == echo.getpeername()[0][:-1] + "1"


def test_packets_are_late_in_each_direction(namespace: Namespace, echo: socket.socket) -> None:
    namespace.degrade(delay_s=LATE_S)
    begun = time.monotonic()
    echo.send(b"hello")
    assert echo.recv(100) == b"hello"
    assert time.monotonic() - begun >= 2 * LATE_S


def test_packets_are_lost_until_the_link_is_well(namespace: Namespace, echo: socket.socket) -> None:
    namespace.degrade(loss=1.0)
    echo.send(b"lost")
    deadline = time.monotonic() + SOON
    while namespace.lost == 0:
        assert time.monotonic() < deadline
    namespace.degrade()
    echo.send(b"well")
    assert echo.recv(100) == b"well"


def test_nothing_is_left() -> None:
    if missing := unavailable():
        pytest.skip(missing)

    def own() -> list[str]:
        return [name for _, name in socket.if_nameindex() if name.startswith(f"wn{os.getpid()}")]

    with Namespace() as made:
        held = Path(made.command()[1].removeprefix("--net="))
        assert held.exists()
        assert len(own()) == 1  # the other end is inside
    assert not held.exists()
    assert own() == []


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert unavailable() == "network namespaces need ip, unshare, nsenter (packages iproute2 and util-linux)"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert unavailable() == "network namespaces need root"
