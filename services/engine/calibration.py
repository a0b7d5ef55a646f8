"""Measures the model now and then while it has nothing to do, so that its speed is known when work comes.

Short texts that come one by one say little of how fast a full batch is: a worker that started beside other load, and
only met such texts since, went on to believe what it had measured then.
"""

import asyncio
from contextlib import suppress
from typing import Final

import numpy as np

from services.engine.errors import EngineError
from services.engine.jobs import Limits
from services.engine.scheduler import Scheduler
from services.engine.throughput import Throughput
from services.engine.types import Ids, Priority, Vector

CONTEXT: Final = object()
"""The context of its requests: their batches are nobody's work, and are not reported."""

_TEXT_TOKENS = 64
_LEAST_TOKENS = 16
_LONGEST_S = 0.1  # of such a batch: as long as a request may have to wait for it
_SOONEST_S, _LATEST_S = 4.0, 30.0  # between two: soon again if the estimate was wrong, later and later if it is right
_RIGHT = 0.1  # relative error of a good estimate


def random_texts(rows: int, tokens: int) -> list[Ids]:
    """Texts of about `tokens` tokens together, out of a vocabulary of `rows`, that share nothing."""
    count = max(1, tokens // _TEXT_TOKENS)
    return [*np.random.default_rng(0).integers(0, rows, (count, tokens // count), np.int32)]


class Calibration:
    """Keeps `throughput` true. `rows`: size of the vocabulary."""

    def __init__(self, throughput: Throughput, limits: Limits, rows: int) -> None:
        self._throughput, self._limits, self._rows = throughput, limits, rows

    async def keep(self, scheduler: Scheduler[Ids, Vector]) -> None:
        """Measures for as long as this task lives."""
        pause_s = _SOONEST_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = _SOONEST_S if await self.measure(scheduler) else min(2 * pause_s, _LATEST_S)

    async def measure(self, scheduler: Scheduler[Ids, Vector]) -> bool:
        """Runs a batch if the model is idle and has had none as large since the last time.

        True if it did and the estimate was wrong.
        """
        most = min(self._limits.batch, self._limits.bulk // self._limits.depth)  # one batch of bulk work
        tokens = max(_LEAST_TOKENS, self._throughput.tokens(_LONGEST_S, most))
        largest = scheduler.largest_batch()
        if largest >= tokens or scheduler.busy:
            return False
        believed = self._throughput.rate(tokens)
        texts = random_texts(self._rows, tokens)
        with suppress(EngineError):
            await scheduler.submit(
                texts,
                [len(text) for text in texts],
                priority=Priority.BULK,
                caller=scheduler.last_caller,  # as another one's it would look as if two shared the model
                context=CONTEXT,
            )
        scheduler.largest_batch()  # its own does not count
        return abs(self._throughput.rate(tokens) / believed - 1) > _RIGHT
