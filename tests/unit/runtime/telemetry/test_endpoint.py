"""The Prometheus endpoint under callers that are silent, slow or wrong."""

import contextlib
import gzip
import http.client
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from services.runtime.telemetry import endpoint as module
from services.runtime.telemetry.endpoint import Endpoint


@pytest.fixture
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("sample", "help", registry=made).set(7)
    return made


@pytest.fixture
def endpoint(registry: CollectorRegistry) -> Iterator[Endpoint]:
    made = Endpoint("127.0.0.1", 0, registry)
    yield made
    made.close()


def connect(endpoint: Endpoint) -> socket.socket:
    return socket.create_connection(("127.0.0.1", endpoint.port), timeout=30)


def scraped(
    endpoint: Endpoint, method: str = "GET", path: str = "/metrics", **headers: Any
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def test_it_answers_as_prometheus_asks(endpoint: Endpoint) -> None:
    status, headers, body = scraped(endpoint)
    assert (status, headers["Content-Length"]) == (200, str(len(body)))
    assert b"sample 7.0" in body
    _, headers, body = scraped(endpoint, Accept="application/openmetrics-text;version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    _, headers, body = scraped(endpoint, **{"Accept-Encoding": "gzip"})
    assert b"sample 7.0" in gzip.decompress(body)
    assert scraped(endpoint, path="/?name[]=other")[2] == b""
    assert scraped(endpoint, "POST")[0] == 405


@pytest.mark.parametrize("sent", [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: x\r\n"])
def test_many_silent_connections_neither_pile_up_nor_keep_a_scrape_waiting(endpoint: Endpoint, sent: bytes) -> None:
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(endpoint)) for _ in range(300)]
        for connection in silent:
            with contextlib.suppress(OSError):  # the oldest are closed already
                connection.sendall(sent)
        assert b"sample 7.0" in scraped(endpoint)[2]
        assert threading.active_count() <= threads  # others may end meanwhile
        assert len(endpoint._open) <= 64
        for connection in silent[:200]:
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
    assert b"sample 7.0" in scraped(endpoint)[2]


def test_a_request_that_does_not_arrive_is_given_up(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REQUEST_SECONDS", 0.1)
    endpoint = Endpoint("127.0.0.1", 0, registry)
    with connect(endpoint) as silent, connect(endpoint) as half:
        half.sendall(b"GET / HTTP/1.0\r\n")
        for connection in (silent, half):
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
    endpoint.close()


def test_an_answer_that_is_not_read_is_given_up(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.1)
    Gauge("large", "x" * (16 << 20), registry=registry)
    endpoint = Endpoint("127.0.0.1", 0, registry)
    with connect(endpoint) as slow:
        slow.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while slow.recv(1, socket.MSG_PEEK) and endpoint._open:
            pass
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := slow.recv(1 << 20):
                received += len(chunk)
        assert received < 16 << 20
    endpoint.close()


@pytest.mark.parametrize(
    "sent", [b"\r\n\r\n", b"nonsense\r\n\r\n", b"\xff\x00\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"x" * (1 << 15)]
)
def test_nonsense_is_refused(endpoint: Endpoint, sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with connect(endpoint) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(sent)
        connection.recv(1)
    assert scraped(endpoint)[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_closing_it_ends_silent_connections_and_frees_the_port(registry: CollectorRegistry) -> None:
    endpoint = Endpoint("127.0.0.1", 0, registry)
    with connect(endpoint) as silent:
        endpoint.close()
        with contextlib.suppress(ConnectionError):
            assert silent.recv(1) == b""
    again = Endpoint("127.0.0.1", endpoint.port, registry)
    again.close()


def test_a_taken_port_is_an_error(endpoint: Endpoint, registry: CollectorRegistry) -> None:
    with pytest.raises(OSError, match="in use"):
        Endpoint("127.0.0.1", endpoint.port, registry)
