"""`python -m deploy.local` as a process of its own, and what it leaves behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The parts that take long to start, said to be elsewhere: what is left is Redis and the gateway.
NO_WORKERS = {"GATEWAY_EMBED_TARGET": "127.0.0.1:1", "GATEWAY_RERANK_TARGET": "127.0.0.1:1"}
_SETTING = re.compile("^(GATEWAY|EMBED|RERANK)_")


def free_ports() -> dict[str, str]:
    """All addresses on ports of the system's choice."""
    parts = ("GATEWAY", "EMBED", "RERANK")
    ports = {f"{part}_{name}": "127.0.0.1:0" for part in parts for name in ("LISTEN", "METRICS_LISTEN")}
    return {**ports, "GATEWAY_HTTP_LISTEN": "127.0.0.1:0"}


def _default_signals() -> None:
    """Whoever runs the tests in the background, or under nohup, ignores these for all that they start."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class LocalStack:
    """One `run` or `demo`. `output` grows as it is printed."""

    def __init__(
        self, command: Sequence[str | Path], environment: Mapping[str, str], folder: Path = ROOT, **options: object
    ) -> None:
        if not Path("/proc/self/environ").exists():
            pytest.skip("finds the processes in /proc")
        # A folder for temporary files marks the processes: it is in their environment, and in the title of Redis.
        self._temporary = tempfile.mkdtemp(prefix="winnow-test-")
        kept = {name: value for name, value in os.environ.items() if not _SETTING.match(name)}
        self.output = ""
        self._grown = threading.Condition()
        self.popen = subprocess.Popen(
            command,
            cwd=folder,
            env={**kept, **environment, "TMPDIR": self._temporary},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_default_signals,  # noqa: PLW1509 - nothing but two system calls
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for something to be printed; the test's own time limit bounds it."""
        with self._grown:
            self._grown.wait_for(lambda: re.search(pattern, self.output) or not self._reader.is_alive())
            found = re.search(pattern, self.output)
        assert found, f"ended without {pattern}:\n{self.output}"
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the stack alone."""
        self.popen.send_signal(number)

    def status(self) -> int:
        """Wait for the end, of the process and of its output."""
        status = self.popen.wait()
        self._reader.join()
        return status

    def close(self) -> None:
        """End what is left of it."""
        while left := self.processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.status()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def processes(self) -> dict[int, str]:
        """Command lines by process id: of the stack, and of all that it started."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                if command and self._temporary.encode() in (folder / "environ").read_bytes() + command:
                    found[int(folder.name)] = command.decode()
            except OSError:  # it has ended, or is a zombie
                continue
        return found

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                with self._grown:
                    self.output += line
                    self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()


@contextmanager
def local_stack(*words: str | Path, **environment: str) -> Iterator[LocalStack]:
    """`python -m deploy.local WORDS` until the block ends; then nothing of it is left."""
    stack = LocalStack([sys.executable, "-m", "deploy.local", *words], environment)
    try:
        yield stack
    finally:
        stack.close()
