"""A child process that is observed by its log."""

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
# Executes the command, with the same process id, after a line on standard input. Ends if standard input ends first.
_GATED = ("/bin/sh", "-c", 'read -r _ && exec "$@"', "sh")


class StartError(Exception):
    """A process did not start. The message contains the end of its log."""


class Process:
    """Runs a command in the background. Writes its log to a file and keeps the last lines in memory.

    Its environment is `inherited` (default: that of this process), overridden by `environment`. `note` is called with
    the process id before the command starts; if this process dies before that, the command never starts.
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
        # A separate session: Ctrl-C and a closed terminal reach only the parent, which then stops its children in
        # order.
        self._popen = subprocess.Popen(
            [*_GATED, *command] if note else command,
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
        """Whether the process is running."""
        return self._popen.poll() is None

    def wait_for(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        """Waits until a line of the log matches, and returns the match.

        Raises StartError if the process ends before that, or after `timeout` seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._search(pattern) or self._ended, timeout)
            match = self._search(pattern)
        if match:
            return match
        raise self.not_started(f"not ready after {timeout:.0f} s")

    def not_started(self, state: str = "") -> StartError:
        """The error, with the exit status (or `state`, if the process is still running) and the end of the log."""
        if self._ended:  # the log is closed a moment before the process can be waited for
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(_END_SECONDS)
        if not self.running:
            self._reader.join()
            state = f"ended with status {self._popen.wait()}"
        return StartError(f"{self.name} did not start ({state}). {self.tail()}")

    def find(self, pattern: str) -> re.Match[str] | None:
        """The first match in the current log."""
        with self._changed:
            return self._search(pattern)

    @property
    def last_line(self) -> str:
        """The last line of the log, or an empty string."""
        with self._changed:
            return self._lines[-1].strip() if self._lines else ""

    def tail(self) -> str:
        """The end of the log."""
        with self._changed:
            return f"The end of {self._log}:\n" + "".join(list(self._lines)[-20:])

    def join(self) -> int:
        """Waits until the process ends, and returns its exit status."""
        return self._popen.wait()

    def address(self, timeout: float = 60.0) -> str:
        """Waits for the line `listening on HOST:PORT` and returns HOST:PORT."""
        return self.wait_for(r"\blistening on ([^\s\"',}]+:\d+)", timeout).group(1)

    def metrics_address(self, timeout: float = 60.0) -> str:
        """Waits for the line `metrics on HOST:PORT` and returns HOST:PORT."""
        return self.wait_for(r"\bmetrics on ([^\s\"',}]+:\d+)", timeout).group(1)

    def stop(self, grace: float = 15.0) -> int:
        """Sends SIGTERM, kills the process after `grace` seconds, and returns its exit status."""
        if self.running:
            self._popen.send_signal(signal.SIGTERM)
        try:
            status = self._popen.wait(grace)
        except subprocess.TimeoutExpired:
            return self.kill()
        self._reader.join()
        return status

    def kill(self) -> int:
        """Kills the process and its children immediately. Returns its exit status."""
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
    """The command that runs a module of this checkout with this interpreter."""
    return [sys.executable, "-m", module]
