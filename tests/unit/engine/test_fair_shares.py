"""Two callers of one scheduler, one of them greedy, in a time of the test's own."""

import asyncio
import random
import statistics

import pytest

from services.engine.errors import EngineError
from services.engine.jobs import Limits
from services.engine.scheduler import Scheduler
from services.engine.throughput import Throughput
from services.engine.types import Priority
from tests.support.virtual_time import virtual_time

BATCH, ITEM = 512, 50
CALLS = 300


def seconds(tokens: int) -> float:
    """Of a batch: 5,000 tokens a second, and 4 ms for each batch."""
    return 0.004 + tokens / 5000


class Served:
    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.refused = self.greedy_tokens = 0
        self.took = 0.0

    @property
    def p95(self) -> float:
        return statistics.quantiles(self.latencies, n=20)[-1]


async def serve(tokens: int, rate: float, greedy: int, deadline_s: float | None = None) -> Served:
    """A modest caller's requests of `tokens` arrive at random beside `greedy` loops of another, 1,000 tokens each."""
    served, numbers = Served(), random.Random(2)
    with virtual_time() as clock:

        async def compute(batch: object) -> list[int]:
            await asyncio.sleep(seconds(batch.cost))  # type: ignore[attr-defined]
            return [0] * len(batch.payloads)  # type: ignore[attr-defined]

        rates = {size: size / seconds(size) for size in (8, 64, BATCH)}
        limits = Limits(batch=BATCH, bulk=BATCH, queue=32 * BATCH, mixed=64, queue_s=2.0)
        scheduler: Scheduler[None, int] = Scheduler(compute, limits, Throughput(rates, BATCH), clock)

        async def ask(caller: str, size: int) -> None:
            costs = [ITEM] * (size // ITEM)
            deadline = None if deadline_s is None else clock() + deadline_s
            await scheduler.submit(
                [None] * len(costs), costs, priority=Priority.INTERACTIVE, caller=caller, deadline=deadline
            )

        async def modest() -> None:
            began = clock()
            try:
                await ask("modest", tokens)
                served.latencies.append(clock() - began)
            except EngineError:
                served.refused += 1

        async def loop() -> None:
            while True:
                try:
                    await ask("greedy", 1000)
                    served.greedy_tokens += 1000
                except EngineError:
                    await asyncio.sleep(0.2)

        loops = [asyncio.create_task(loop()) for _ in range(greedy)]
        began, calls = clock(), []
        for _ in range(CALLS):
            await asyncio.sleep(numbers.expovariate(rate))
            calls.append(asyncio.create_task(modest()))
        await asyncio.gather(*calls)
        served.took = clock() - began
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    return served


@pytest.mark.parametrize(("tokens", "rate"), [(50, 4.0), (200, 4.0), (500, 4.0)])
async def test_a_greedy_caller_costs_another_two_batches_at_the_most(tokens: int, rate: float) -> None:
    alone, beside = await serve(tokens, rate, 0), await serve(tokens, rate, 50)
    assert alone.refused == beside.refused == 0
    # The batch that runs cannot be interrupted, and its own is filled up with the greedy one's work.
    assert beside.p95 <= alone.p95 + 2 * seconds(BATCH)
    # The greedy one has all that is left: batches of the modest one cost a start each.
    left = 5000 * beside.took * (BATCH / 5000) / seconds(BATCH) - CALLS * (tokens + 0.004 * 5000)
    assert beside.greedy_tokens >= 0.9 * left


async def test_a_modest_caller_is_not_refused_for_what_a_greedy_one_has_queued() -> None:
    beside = await serve(200, 4.0, 50, deadline_s=1.0)
    assert beside.refused == 0
    assert max(beside.latencies) <= 1.0
