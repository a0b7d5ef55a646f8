"""Callers of one scheduler, some of them greedy, in a time of the test's own."""

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
SHORT = 200  # tokens of a batch that takes no longer than 50 ms


def seconds(tokens: int) -> float:
    """Of a batch: 5,000 tokens a second, and 4 ms for each batch."""
    return 0.004 + tokens / 5000


class Served:
    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.refused = self.greedy_tokens = 0
        self.batches: list[tuple[float, int]] = []  # when they began, and their tokens
        self.took = 0.0

    @property
    def p95(self) -> float:
        return statistics.quantiles(self.latencies, n=20)[-1]


async def serve(
    tokens: int, rate: float, greedy: int, deadline_s: float | None = None, *, callers: int = 1, calls: int = CALLS
) -> Served:
    """A modest caller's requests of `tokens` arrive at random beside `greedy` loops of others, 1,000 tokens each."""
    served, numbers = Served(), random.Random(2)
    with virtual_time() as clock:

        async def compute(batch: object) -> list[int]:
            served.batches.append((clock() - began, batch.cost))  # type: ignore[attr-defined]
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

        async def loop(number: int) -> None:
            while True:
                try:
                    await ask(f"greedy {number % callers}", 1000)
                    served.greedy_tokens += 1000
                except EngineError:
                    await asyncio.sleep(0.2)

        began, sent = clock(), []
        loops = [asyncio.create_task(loop(number)) for number in range(greedy)]
        for _ in range(calls):
            await asyncio.sleep(numbers.expovariate(rate))
            sent.append(asyncio.create_task(modest()))
        await asyncio.gather(*sent)
        served.took = clock() - began
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    return served


@pytest.mark.parametrize(("tokens", "rate"), [(50, 4.0), (200, 4.0), (500, 4.0)])
async def test_a_greedy_caller_costs_another_two_short_batches_at_the_most(tokens: int, rate: float) -> None:
    alone, beside = await serve(tokens, rate, 0), await serve(tokens, rate, 50)
    assert alone.refused == beside.refused == 0
    # The batch that runs cannot be interrupted, and its own is filled up with the greedy one's work.
    assert beside.p95 <= alone.p95 + 2 * seconds(SHORT)
    # The greedy one has all that is left: batches of the modest one cost a start each.
    left = 5000 * beside.took * (BATCH / 5000) / seconds(BATCH) - CALLS * (tokens + 0.004 * 5000)
    assert beside.greedy_tokens >= 0.9 * left


async def test_callers_that_always_have_something_waiting_have_full_batches() -> None:
    both = await serve(50, 0.02, 50, callers=2, calls=1)
    assert both.took > 20
    later = [tokens for at, tokens in both.batches if 11 <= at < both.took - 1]
    assert len(later) > 50
    assert statistics.mean(later) >= 0.9 * BATCH


@pytest.mark.parametrize(("shared", "largest"), [(0, 120), (40, 8 * 40)])
async def test_a_short_batch_is_long_beside_what_its_items_share(shared: int, largest: int) -> None:
    costs: list[int] = []
    with virtual_time() as clock:

        async def compute(batch: object) -> list[int]:
            costs.append(batch.cost)  # type: ignore[attr-defined]
            await asyncio.sleep(batch.cost / 1000)  # type: ignore[attr-defined]
            return [0] * len(batch.payloads)  # type: ignore[attr-defined]

        limits = Limits(batch=BATCH, bulk=BATCH, queue=32 * BATCH, mixed=64)
        scheduler: Scheduler[None, int] = Scheduler(compute, limits, Throughput({BATCH: 1000.0}, BATCH), clock)
        both = [
            scheduler.submit([None] * 40, [10] * 40, shared=shared, priority=Priority.INTERACTIVE, caller=caller)
            for caller in ("one", "two")
        ]
        await asyncio.gather(*both)
    assert max(costs) == largest  # as many of ten as 128 hold, or as eight times what they share


async def test_a_modest_caller_is_not_refused_for_what_a_greedy_one_has_queued() -> None:
    beside = await serve(200, 4.0, 50, deadline_s=1.0)
    assert beside.refused == 0
    assert max(beside.latencies) <= 1.0
