"""Ctrl-C, a plain kill and a closed terminal, all as KeyboardInterrupt, but never between a start and its record."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP of this process. `number` is the last one that came, 0 if none."""

    def __init__(self) -> None:
        self.number = 0
        self._holders = 0
        self._waiting = False

    def install(self) -> None:
        """Take the signals over, except those that whoever started us ignores (nohup)."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put off what comes within the block to its end."""
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
