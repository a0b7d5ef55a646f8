"""A stand-in for an embed worker as a process of its own, which can be stopped and killed.

`python -m tests.support.worker_process HOST:PORT`
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.local.process import Process, python_module
from services.runtime import process
from services.runtime.telemetry import logs
from services.runtime.telemetry.setup import Telemetry
from tests.support.serving import PlainSettings
from tests.support.workers import EmbedWorker

ROOT = Path(__file__).resolve().parents[2]


class WorkerProcess:
    """A running worker. `within` stands before its command, as that of a network namespace."""

    def __init__(self, folder: Path, listen: str = "127.0.0.1:0", within: Sequence[str] = ()) -> None:
        command = [*within, *python_module("tests.support.worker_process"), listen]
        self._process = Process("worker", command, {"PYTHONPATH": str(ROOT)}, folder / "worker.log")

    def serving(self) -> str:
        """Its address, once it serves."""
        self._process.wait_for(r"\bserving winnow\.")
        return self._process.address()

    def signal(self, number: int) -> None:
        """SIGSTOP freezes it, SIGCONT lets it go on."""
        os.kill(self._process.pid, number)

    def join(self) -> int:
        """Waits for its end; returns the exit status."""
        return self._process.join()

    def close(self) -> None:
        """Kills it, if it runs."""
        if self._process.running:
            self.signal(signal.SIGKILL)
        self._process.join()


if __name__ == "__main__":
    logs.configure("INFO", "plain")
    sys.exit(process.run(PlainSettings(listen=sys.argv[1]), EmbedWorker, Telemetry()))
