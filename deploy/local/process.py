"""A child process whose log says what it is doing."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_END_SECONDS = 10.0
# Becomes the command after a line on standard input, and ends if that ends first. The process id stays the same.
_WHEN_TOLD = ("/bin/sh", "-c", 'read -r _ && exec "$@"', "sh")


class StartError(Exception):
    """A process did not start; the message holds the end of its log."""


class Process:
    """Runs a command in the background and keeps its log, in a file and, as far as it is recent, at hand.

    Its environment is `inherited` (default: this process's) with `environment` over it. `note` is called with the
    process id before the command begins; if this process dies before that, the command never begins.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        log: Path,
        inherited: Mapping[str, str] | None = None,
        note: Callable[[int], None] | None = None,
    ) -> None:
        self.name = name
        self._log = log
        self._lines: deque[str] = deque(maxlen=2000)
        self._ended = False
        self._changed = threading.Condition()
        # A session of its own: Ctrl-C and the end of the terminal reach the parent alone, which then stops its children
        # in order.
        self._popen = subprocess.Popen(
            [*_WHEN_TOLD, *command] if note else command,
            env={**(os.environ if inherited is None else inherited), **environment},
            stdin=subprocess.PIPE if note else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        if note:
            note(self.pid)
            assert self._popen.stdin is not None
            with suppress(BrokenPipeError), self._popen.stdin as gate:
                gate.write("\n")
        self._reader = threading.Thread(target=self._read, name=f"{name}-log", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._popen.poll() is None

    def wait_for(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        """Wait until a line of the log matches, and return the match.

        Raises StartError where the process ends before, or `timeout` seconds are up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._search(pattern) or self._ended, timeout)
            match = self._search(pattern)
        if match:
            return match
        raise self.not_started(f"said nothing in {timeout:.0f} s")

    def not_started(self, state: str = "") -> StartError:
        """Return the error that says so: in which `state` it is, if it has not ended, and the end of its log."""
        if self._ended:  # a process closes its log a moment before it can be waited for
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(_END_SECONDS)
        if not self.running:
            self._reader.join()
            state = f"ended with status {self._popen.wait()}"
        return StartError(f"{self.name} did not start ({state}). {self.tail()}")

    def find(self, pattern: str) -> re.Match[str] | None:
        """Return the first match in the log as it is now."""
        with self._changed:
            return self._search(pattern)

    @property
    def last_line(self) -> str:
        """The newest line of the log, or nothing."""
        with self._changed:
            return self._lines[-1].strip() if self._lines else ""

    def tail(self) -> str:
        """Return the end of the log."""
        with self._changed:
            return f"The end of {self._log}:\n" + "".join(list(self._lines)[-20:])

    def join(self) -> int:
        """Wait until the process ends by itself and return its exit status."""
        return self._popen.wait()

    def address(self, timeout: float = 60.0) -> str:
        """Wait for the line `listening on HOST:PORT` and return HOST:PORT."""
        return self.wait_for(r"\blistening on ([^\s\"',}]+:\d+)", timeout).group(1)

    def metrics_address(self, timeout: float = 60.0) -> str:
        """Wait for the line `metrics on HOST:PORT` and return HOST:PORT."""
        return self.wait_for(r"\bmetrics on ([^\s\"',}]+:\d+)", timeout).group(1)

    def stop(self, grace: float = 15.0) -> int:
        """Ask the process to end, end it after `grace` seconds, and return its exit status."""
        if self.running:
            self._popen.send_signal(signal.SIGTERM)
        try:
            status = self._popen.wait(grace)
        except subprocess.TimeoutExpired:
            return self.kill()
        self._reader.join()
        return status

    def kill(self) -> int:
        """End the process, and what it has started, at once; return its exit status."""
        if self.running:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        status = self._popen.wait()
        self._reader.join()
        return status

    def _search(self, pattern: str) -> re.Match[str] | None:
        return next((match for line in self._lines if (match := re.search(pattern, line))), None)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as lines, self._log.open("w") as log:
            for line in lines:
                log.write(line)
                log.flush()
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def python_module(module: str) -> list[str]:
    """Return the command that runs a module of this checkout with this interpreter."""
    return [sys.executable, "-m", module]
