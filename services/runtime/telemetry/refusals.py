"""Refused calls: each is counted, and the log has a line when they begin and a sum now and then while they go on."""

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
    """Of one process, on its event loop.

    Of each reason the first refusal is logged at once, and from then on how many there were every `again_s` seconds,
    until there were none. What is not yet logged when telemetry ends is logged then.
    """

    def __init__(self, telemetry: Telemetry, again_s: float = _AGAIN_SECONDS) -> None:
        self._counter = telemetry.counter(names.SHED)
        self._again_s = again_s
        self._unlogged: Counter[Refusal] = Counter()
        self._timers: dict[Refusal, asyncio.TimerHandle] = {}
        telemetry.before_shutdown(self.flush)

    def add(self, reason: Refusal) -> None:
        """One call was refused."""
        self._counter.add(1, {names.SHED_REASON: reason.value})
        self._unlogged[reason] += 1
        if reason not in self._timers:
            self._tell(reason)

    def flush(self) -> None:
        """Logs what is left."""
        for reason, count in self._unlogged.items():
            if count:
                self._write(reason, count)
        self._unlogged.clear()

    def _tell(self, reason: Refusal) -> None:
        self._timers.pop(reason, None)
        count = self._unlogged.pop(reason, 0)
        if count:
            self._write(reason, count)
            loop = asyncio.get_running_loop()
            self._timers[reason] = loop.call_later(self._again_s, self._tell, reason)

    def _write(self, reason: Refusal, count: int) -> None:
        calls = "1 call" if count == 1 else f"{count} calls"
        log.warning("refused %s: %s", calls, reason.value, extra={"reason": reason.value, "refused": count})
