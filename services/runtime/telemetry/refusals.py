"""Counts refused calls, and logs the first one and then a sum at intervals."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from services.runtime.telemetry import names
from services.runtime.telemetry.names import Refusal
from services.runtime.telemetry.setup import Telemetry

log = logging.getLogger("winnow.refusals")

_AGAIN_SECONDS = 10.0


class Refusals:
    """The refused calls of one process. Used on its event loop.

    For each reason, the first refusal is logged immediately. After that, their number is logged every `again_s` seconds
    until there are none. The rest is logged when telemetry shuts down.
    """

    def __init__(self, telemetry: Telemetry, again_s: float = _AGAIN_SECONDS) -> None:
        self._counter = telemetry.counter(names.SHED)
        self._again_s = again_s
        self._unlogged: Counter[Refusal] = Counter()
        self._timers: dict[Refusal, asyncio.TimerHandle] = {}
        telemetry.before_shutdown(self.flush)

    def add(self, reason: Refusal) -> None:
        """Counts one refused call."""
        self._counter.add(1, {names.SHED_REASON: reason.value})
        self._unlogged[reason] += 1
        if reason not in self._timers:
            self._report(reason)

    def flush(self) -> None:
        """Logs the refusals that have not been logged yet."""
        for reason, count in self._unlogged.items():
            if count:
                self._write(reason, count)
        self._unlogged.clear()

    def _report(self, reason: Refusal) -> None:
        self._timers.pop(reason, None)
        count = self._unlogged.pop(reason, 0)
        if count:
            self._write(reason, count)
            loop = asyncio.get_running_loop()
            self._timers[reason] = loop.call_later(self._again_s, self._report, reason)

    def _write(self, reason: Refusal, count: int) -> None:
        calls = "1 call" if count == 1 else f"{count} calls"
        log.warning("refused %s: %s", calls, reason.value, extra={"reason": reason.value, "refused": count})
