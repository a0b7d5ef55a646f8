"""Raises KeyboardInterrupt on Ctrl-C, SIGTERM and a closed terminal, but not while a process is being started."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP of this process. `number` is the last signal received, 0 if none."""

    def __init__(self) -> None:
        self.number = 0
        self._holders = 0
        self._waiting = False

    def install(self) -> None:
        """Handles the signals, except those that the parent process has set to be ignored (nohup)."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Defers signals that arrive within the `with` block to its end."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders and self._waiting:
                self._waiting = False
                raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._holders:
            self._waiting = True
        else:
            raise KeyboardInterrupt
