"""SIGTERM and SIGINT while a process starts, also as the first process of a container, which has no default action."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNSHARE = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
PREFIXES = {"gateway": "GATEWAY", "services.embed": "EMBED", "services.rerank": "RERANK"}


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


first_process = pytest.mark.skipif(not may_unshare(), reason="needs the right to make a PID namespace (unshare)")


class Started:
    """A process, seen from outside: by its pid here, which is 1 to itself where it is the first of its namespace."""

    def __init__(self, popen: subprocess.Popen[bytes], first: bool) -> None:
        self.popen, self._first = popen, first

    @property
    def pid(self) -> int | None:
        if not self._first:
            return self.popen.pid
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def read(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.pid}/{name}").read_text()
        except OSError:
            return ""

    @property
    def prepared(self) -> bool:
        """Whether the handlers are installed: that of SIGINT comes first, and Python has one of its own."""
        if b"python" not in self.read("cmdline").encode().split(b"\0")[0]:
            return False
        caught = [line.split()[1] for line in self.read("status").splitlines() if line.startswith("SigCgt")]
        return bool(caught) and bool(int(caught[0], 16) & 1 << (signal.SIGTERM - 1))

    def maps(self, library: str) -> bool:
        return library in self.read("maps")


def wait(fact: Callable[[], bool]) -> None:
    """Polls; the test's own time limit bounds it."""
    while not fact():
        time.sleep(0.0005)


@contextmanager
def started(module: str, log: Path, first: bool) -> Iterator[Started]:
    prefix = PREFIXES[module]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        f"{prefix}_LISTEN": "127.0.0.1:0",
        f"{prefix}_METRICS_LISTEN": "127.0.0.1:0",
    }
    command = [*(UNSHARE if first else []), sys.executable, "-m", module]
    with log.open("wb") as output:
        popen = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=ROOT)
    try:
        yield Started(popen, first)
    finally:
        popen.kill()
        popen.wait()


MOMENTS: dict[str, Callable[[Started, Path], bool]] = {
    "at once": lambda process, log: True,
    "while grpc is imported": lambda process, log: process.maps("cygrpc"),
    "while numpy or pydantic are": lambda process, log: process.maps("_multiarray_umath") or process.maps("pydantic"),
    "when it listens": lambda process, log: b"listening" in log.read_bytes(),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("module", PREFIXES)
@pytest.mark.parametrize("first", [False, pytest.param(True, marks=first_process)])
def test_a_signal_while_it_starts_ends_it(tmp_path: Path, module: str, number: int, moment: str, first: bool) -> None:
    log = tmp_path / "log"
    with started(module, log, first) as process:
        wait(lambda: process.prepared)
        wait(lambda: MOMENTS[moment](process, log))
        pid = process.pid
        assert pid is not None
        os.kill(pid, number)
        assert process.popen.wait(30) == 0
    assert "Traceback" not in log.read_text()
