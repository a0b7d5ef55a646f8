"""An idle model is measured; a busy one, or one that has just shown how fast it is, is not."""

import asyncio
from typing import Any

import pytest

from services.engine.calibration import CONTEXT, Calibration, random_texts
from services.engine.jobs import Batch, Limits
from services.engine.scheduler import Scheduler
from services.engine.throughput import Throughput
from services.engine.types import Priority

LIMITS = Limits(batch=2000, bulk=600, queue=100_000, mixed=32)


class Model:
    """Computes `rate` tokens a second in a time of its own, and is thought to do `believed`.

    A batch of less than 64 tokens takes `small` times as long.
    """

    def __init__(self, believed: float, rate: float, small: float = 1.0) -> None:
        self.rate, self.small, self.now = rate, small, 0.0
        self.batches: list[Batch[Any, Any]] = []
        self.throughput = Throughput(dict.fromkeys((6, 256, 2000), believed), LIMITS.batch)
        self.scheduler: Scheduler[Any, Any] = Scheduler(self._compute, LIMITS, self.throughput, lambda: self.now)
        self.calibration = Calibration(self.throughput, LIMITS, 100)

    async def _compute(self, batch: Batch[Any, Any]) -> list[Any]:
        await asyncio.sleep(0)
        self.batches.append(batch)
        self.now += batch.cost / self.rate * (self.small if batch.cost < 64 else 1.0)
        return list(batch.payloads)

    async def ask(self, tokens: int) -> None:
        await self.scheduler.submit([object()], [tokens], priority=Priority.INTERACTIVE)


@pytest.mark.parametrize(("believed", "rate"), [(2_681.0, 26_590.0), (26_590.0, 2_681.0)])
async def test_beside_short_texts_the_speed_of_full_batches_is_found(believed: float, rate: float) -> None:
    model = Model(believed, rate)
    for _ in range(10):
        await model.ask(12)
        await model.calibration.measure(model.scheduler)
    assert model.throughput.rate() == pytest.approx(rate, rel=0.3)


async def test_short_texts_that_are_slow_do_not_hide_the_speed_of_full_batches() -> None:
    """Texts that come one by one find a processor that sleeps: they say nothing of what it does when it is awake."""
    model = Model(7_800.0, 26_590.0, small=4.0)
    for _ in range(10):
        for _ in range(6):
            await model.ask(12)
        await model.calibration.measure(model.scheduler)
    assert model.throughput.rate() == pytest.approx(26_590.0, rel=0.3)


async def test_it_is_short_whatever_the_model() -> None:
    for rate in (50.0, 1_000.0, 1e6):
        model = Model(rate, rate)
        assert not await model.calibration.measure(model.scheduler)  # the estimate was right
        [batch] = model.batches
        assert batch.cost <= max(16, 0.1 * rate)
        assert batch.contexts == (CONTEXT,)


async def test_one_that_has_had_a_large_batch_is_not_measured() -> None:
    model = Model(1000.0, 1000.0)
    await model.ask(500)
    await model.calibration.measure(model.scheduler)
    assert len(model.batches) == 1
    await model.calibration.measure(model.scheduler)
    assert len(model.batches) == 2


async def test_a_busy_one_is_left_alone() -> None:
    model = Model(1000.0, 1000.0)
    asking = asyncio.create_task(model.ask(5))
    await asyncio.sleep(0)
    await model.calibration.measure(model.scheduler)
    await asking
    assert [batch.cost for batch in model.batches] == [5]


async def test_it_is_no_second_caller() -> None:
    """While callers take turns batches are short: one that is alone must not have them for being measured."""
    model = Model(1000.0, 1000.0)
    for _ in range(2):
        await model.scheduler.submit([object()], [5], priority=Priority.INTERACTIVE, caller="alone")
        model.now += 20.0
        await model.calibration.measure(model.scheduler)
    await model.scheduler.submit([object()] * 40, [50] * 40, priority=Priority.INTERACTIVE, caller="alone")
    assert model.batches[-1].cost == LIMITS.batch


async def test_one_that_ends_is_no_error() -> None:
    model = Model(1000.0, 1000.0)
    await model.scheduler.drain()
    assert not await model.calibration.measure(model.scheduler)
    assert not model.batches


def test_texts_have_the_tokens_that_were_asked_for() -> None:
    for tokens in (1, 6, 64, 256, 2000):
        texts = random_texts(50, tokens)
        assert 0.9 * tokens <= sum(map(len, texts)) <= tokens
        assert all(0 <= token < 50 for text in texts for token in text)
