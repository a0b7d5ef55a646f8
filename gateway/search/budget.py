"""How the time of a search is divided and measured."""

import asyncio
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """How the time of a search is divided.

    `embed_share` and `retrieve_share`: the maximum share for the stage, of the time that is left when it begins.
    `timeout_s`: the deadline of a search that has none.
    """

    timeout_s: float
    embed_share: float
    retrieve_share: float


class Budget:
    """The time of one search, divided between its stages."""

    def __init__(self, deadline: float | None, settings: BudgetSettings) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        now = self._loop.time()
        end = now + settings.timeout_s if deadline is None else deadline
        # Reserve time to send the response before the deadline of the caller.
        self._end = end - min(0.25, max(0.01, 0.05 * (end - now)))

    def _left(self) -> float:
        return max(0.0, self._end - self._loop.time())

    def embed(self) -> float:
        """Deadline of the embed stage."""
        return self._loop.time() + self._settings.embed_share * self._left()

    def retrieve_s(self) -> float:
        """Seconds for the retrieve stage."""
        return self._settings.retrieve_share * self._left()

    def rerank(self) -> float:
        """Deadline of the rerank stage: all the time that is left."""
        return self._end


class Stopwatch:
    """Measures the milliseconds of a block."""

    ms = 0.0

    def __enter__(self) -> "Stopwatch":
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.ms = (time.perf_counter() - self._began) * 1e3
