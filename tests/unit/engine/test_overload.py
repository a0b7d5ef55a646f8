"""More work than the model can do: it answers in time what it can do, and the rest is refused at once.

The model's time is simulated, with a fixed part, a part per token, and noise. Calls arrive by themselves (Poisson),
whatever becomes of those before them, and their callers give up at their deadlines.
"""

import asyncio
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.engine.errors import DeadlineTooShort
from services.engine.scheduler import Batch, Limits, Outcome, Scheduler
from services.engine.throughput import Throughput
from services.engine.types import Priority
from tests.unit.engine.test_scheduler import settle

LIMITS = Limits(batch=2000, bulk=600, queue=64_000, mixed=32)


@dataclass(frozen=True)
class Load:
    """Calls of `items` texts of `cost` tokens each; the model computes `rate` tokens a second, and each batch takes
    `fixed` seconds more."""

    rate: float
    cost: int
    items: int = 1
    fixed: float = 0.02
    noise: float = 0.15  # of the logarithm of a batch's time

    def seconds(self, tokens: int) -> float:
        return self.fixed + tokens / self.rate

    @property
    def capacity(self) -> float:
        """Calls a second, in batches that end in half a second."""
        tokens = min(LIMITS.batch, max(self.cost * self.items, int(self.rate * 0.5)))
        return tokens / self.seconds(tokens) / (self.cost * self.items)


@dataclass
class Result:
    in_time: list[float] = field(default_factory=list)  # when each such call arrived
    refused_after: list[float] = field(default_factory=list)
    late: int = 0


class Simulation:
    """`times` the capacity, for `seconds`; each call has `patience` seconds."""

    def __init__(self, load: Load, times: Callable[[float], float], patience: float, seconds: float) -> None:
        self.load, self.now, self.result = load, 0.0, Result()
        self._random = random.Random(1)
        self._running: list[tuple[float, asyncio.Future[list[Any]], Batch[Any, Any]]] = []
        self._patience = patience
        self._events: list[tuple[float, int]] = []  # (when, call): it arrives, then its caller gives up
        at, number = 0.0, 0
        while (at := at + self._random.expovariate(times(at) * load.capacity)) < seconds:
            self._events.append((at, number))
            number += 1

    async def run(self) -> Result:
        sizes = (6, 24, 256, LIMITS.batch)
        throughput = Throughput({size: size / self.load.seconds(size) for size in sizes}, LIMITS.batch)
        self._scheduler: Scheduler[int, int] = Scheduler(self._compute, LIMITS, throughput, lambda: self.now)
        calls: dict[int, asyncio.Task[Outcome[int]]] = {}
        while self._events or self._running:
            if not self._running or (self._events and self._events[0][0] <= self._running[0][0]):
                self.now, number = heapq.heappop(self._events)
                if number in calls:
                    calls[number].cancel()
                else:
                    calls[number] = self._call(number)
            else:
                self.now, answer, batch = self._running.pop(0)
                answer.set_result(list(batch.payloads))
            await settle()
        return self.result

    def _call(self, number: int) -> asyncio.Task[Outcome[int]]:
        arrived, deadline = self.now, self.now + self._patience
        costs = [self.load.cost] * self.load.items
        call = asyncio.ensure_future(
            self._scheduler.submit([number] * len(costs), costs, priority=Priority.INTERACTIVE, deadline=deadline)
        )

        def done(call: asyncio.Task[Outcome[int]]) -> None:
            if call.cancelled():
                self.result.late += 1
            elif isinstance(call.exception(), DeadlineTooShort):
                self.result.refused_after.append(self.now - arrived)
            else:
                self.result.in_time.append(arrived)

        call.add_done_callback(done)
        heapq.heappush(self._events, (deadline, number))
        return call

    async def _compute(self, batch: Batch[int, int]) -> list[int]:
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        took = self.load.seconds(batch.cost) * self._random.lognormvariate(0, self.load.noise)
        self._running.append((self.now + took, answer, batch))
        return await answer


LOADS = {
    "short texts": Load(rate=1200, cost=60),
    "twenty documents": Load(rate=6000, cost=60, items=20),
    "a large model": Load(rate=300, cost=100, fixed=0.05),
    "small batches cost": Load(rate=20_000, cost=60, fixed=0.05),
}


@pytest.mark.parametrize("patience", [1.0, 5.0])
@pytest.mark.parametrize("times", [2.0, 4.0])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
async def test_overload_leaves_the_goodput_at_capacity(load: Load, times: float, patience: float) -> None:
    seconds = 30.0
    result = await Simulation(load, lambda at: times, patience, seconds).run()
    for half in (0, 1):
        begin, end = half * seconds / 2, (half + 1) * seconds / 2
        good = sum(begin <= at < end for at in result.in_time)
        assert good >= 0.8 * load.capacity * seconds / 2, f"half {half}"
    # Nearly all that is not answered is refused, when it comes.
    result.refused_after.sort()
    assert result.refused_after[int(0.98 * len(result.refused_after))] < 0.05
    assert result.late <= 0.05 * len(result.in_time)


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
async def test_nothing_is_refused_at_a_load_that_fits(load: Load) -> None:
    result = await Simulation(load, lambda at: 0.5, 5.0, 30.0).run()
    assert not result.refused_after
    assert not result.late


async def test_the_end_of_an_overload_is_the_end_of_its_refusals() -> None:
    load = LOADS["short texts"]
    result = await Simulation(load, lambda at: 4.0 if at < 20 else 0.5, 1.0, 40.0).run()
    calm = [at for at in result.in_time if at >= 21]
    assert len(calm) >= 0.9 * 0.5 * load.capacity * 19
