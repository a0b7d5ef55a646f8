"""Stops the processes of a stack if the stack itself has been killed, which leaves it no time to do so.

It is a separate process, because this works on both Linux and macOS. Its standard input lists the processes: "+PID" for
each one that was started, "-PID" for each one that has ended. The system closes this input when the stack ends. This
file runs as a script and imports nothing from the repository.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

_GRACE_SECONDS = 15.0


class Watchdog:
    """The watchdog, as seen by the stack. `held`: file descriptors that stay open until all processes have ended."""

    def __init__(self, held: Sequence[int] = ()) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # neither Ctrl-C nor a closed terminal reaches it
            pass_fds=held,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    def watch(self, pid: int) -> None:
        """Stops this process group when the stack ends."""
        self._write(f"+{pid}")

    def forget(self, pid: int) -> None:
        """Removes a process that has ended, because its id may be reused."""
        self._write(f"-{pid}")

    def close(self) -> None:
        """Stops the processes that are still watched, then the watchdog. Calling it again does nothing."""
        if self._popen.stdin is not None:
            with suppress(OSError):
                self._popen.stdin.close()
        self._popen.wait()

    def _write(self, line: str) -> None:
        assert self._popen.stdin is not None
        with suppress(OSError):  # the watchdog was killed; the stack normally stops its processes itself
            print(line, file=self._popen.stdin, flush=True)


def main(lines: Iterable[str]) -> None:
    """Reads `lines` to the end, then stops the remaining processes."""
    watched: set[int] = set()
    for line in lines:
        (watched.add if line.startswith("+") else watched.discard)(int(line[1:]))
    watched = {pid for pid in watched if _signal(pid, signal.SIGTERM)}
    given_up = time.monotonic() + _GRACE_SECONDS
    while watched and time.monotonic() < given_up:
        time.sleep(0.05)
        watched = {pid for pid in watched if _signal(pid, 0)}
    for pid in watched:
        _signal(pid, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Sends a signal to a process group. Returns False if it does not exist."""
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.stdin)
