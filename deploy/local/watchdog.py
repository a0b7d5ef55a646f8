"""Ends what a stack started when the stack itself has gone, in whatever way: SIGKILL leaves it no time to do so.

A process beside the stack, so that it works on Linux and macOS alike. Its standard input names what is to be ended:
"+PID" for each process that was started, "-PID" for each that has ended. The system closes that input with the stack.
This file runs as a script of its own and imports nothing from the repository.
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
    """The stack's end of it. `held`: file descriptors, as of a lock, that stay open until all processes have ended."""

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
        """End this process group if the stack goes."""
        self._write(f"+{pid}")

    def forget(self, pid: int) -> None:
        """The process has ended; its id may come to name another."""
        self._write(f"-{pid}")

    def close(self) -> None:
        """End what is still watched, and then the watchdog. Calling it again does nothing."""
        if self._popen.stdin is not None:
            with suppress(OSError):
                self._popen.stdin.close()
        self._popen.wait()

    def _write(self, line: str) -> None:
        assert self._popen.stdin is not None
        with suppress(OSError):  # somebody ended it; the stack ends its processes itself where it can
            print(line, file=self._popen.stdin, flush=True)


def main(lines: Iterable[str]) -> None:
    """Follow `lines` to their end, then end what is left."""
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
    """Send a signal to a process group; False if it is gone."""
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.stdin)
