"""Interactive work beside bulk work whose batches take longer than any ageing: who goes next, counted in steps.

The model's time is simulated: a batch of n tokens takes n / RATE seconds, and nothing else takes time.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from services.engine.engine import EmbedEngine
from services.engine.errors import DeadlineTooShort, Overloaded
from services.engine.jobs import Limits, Outcome
from services.engine.types import BatchReport, EngineSettings, Priority
from tests.unit.engine.conftest import LIMIT
from tests.unit.engine.test_scheduler import LIMITS, RATE, World, has_interactive, settle

LONG = 400  # tokens: one item over every limit of a batch, 4 s of the model
LARGE = Limits(batch=50, bulk=40, queue=100_000, mixed=20)
SHAPES: dict[str, list[tuple[list[int], int]]] = {  # requests: (costs, shared)
    "one request of long texts": [([LONG] * 8, 0)],
    "many requests of one long text": [([LONG], 0)] * 8,
    "long documents of one query": [([LONG] * 8, 30)],
    "long texts among short ones": [([5, LONG, 5, 5, LONG, 20, 20, LONG], 0)] * 3,
    "short texts without end": [([10] * 400, 0)],
    "short documents of one query": [([10] * 100, 25)],
}


class Simulated(World):
    """Time passes as the model computes."""

    async def step(self, *, slower: float = 1.0) -> None:
        """The oldest batch ends."""
        self.now += slower * self.running[0][0].cost / RATE
        await self.finish()

    def send(self, shape: str) -> list[asyncio.Task[Outcome[Any]]]:
        return [self.submit(*costs, shared=shared, priority=Priority.BULK) for costs, shared in SHAPES[shape]]


async def stop(world: World) -> None:
    """Nothing is left for the loop to complain of."""
    world.scheduler.close()
    await world.finish_all()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
async def test_an_interactive_call_waits_for_one_bulk_step_at_most(shape: str, depth: int) -> None:
    world = Simulated(replace(LARGE, depth=depth))
    jobs = world.send(shape)
    await settle()
    calls = 0
    while not all(job.done() for job in jobs):
        idle = 5 / RATE
        before = world.now
        one_step = max(sum(batch.cost for batch, _ in world.running), LARGE.bulk) / RATE
        call = world.submit(5)
        await settle()
        while not call.done():
            await world.step()
        assert (await call).results
        # Bulk work nearly for free may have come into its batch.
        assert world.now - before <= one_step + max(idle, LARGE.mixed / RATE) + 1e-9
        calls += 1
        # What is under way together is one long item, or no more than the limit for bulk.
        bulk = [batch for batch, _ in world.running if batch.priority is Priority.BULK]
        assert len(bulk) <= 1 or sum(batch.cost for batch in bulk) <= LARGE.bulk
        if world.running:
            await world.step()
    assert calls >= 4


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("patience", [None, 20.0], ids=["no deadlines", "deadlines"])
async def test_bulk_work_is_done_in_the_end_beside_a_flood(shape: str, depth: int, patience: float | None) -> None:
    """Ten full interactive batches wait at any time. Bulk work has its turn when they have had as long as it."""
    world = Simulated(replace(LARGE, depth=depth))
    jobs = world.send(shape)
    flood: list[asyncio.Task[Outcome[Any]]] = []
    work = sum(sum(costs) + shared * len(costs) for costs, shared in SHAPES[shape])
    limit = 10 * work / RATE + 100
    start = world.now
    while not all(job.done() for job in jobs):
        flood = [call for call in flood if not call.done()]
        for _ in range(10 - len(flood)):
            flood.append(world.submit(50, deadline=patience and world.now + patience))
        await settle()
        await world.step()
        assert world.now - start < 12 * limit
    priorities = [batch.priority for batch in world.batches[depth:]]
    assert (Priority.BULK, Priority.BULK) not in list(pairwise(priorities))[: -depth - 1]
    await stop(world)
    await asyncio.gather(*flood, return_exceptions=True)


async def test_ageing_counts_from_the_end_of_a_bulk_batch_and_lasts_as_long_as_it_took() -> None:
    world = Simulated(LARGE)
    world.submit(LONG, LONG, LONG, priority=Priority.BULK)
    await settle()
    flood = [world.submit(50) for _ in range(40)]
    for _ in range(22):
        await world.step()
    steps = [batch.cost for batch in world.batches]
    # 4 s of bulk, then interactive batches of half a second until they have had more than that.
    assert steps[:11] == [LONG] + [50] * 9 + [LONG]
    assert steps[11:20] == [50] * 9
    await stop(world)
    await asyncio.gather(*flood, return_exceptions=True)


async def test_a_stalled_loop_gives_bulk_no_second_turn() -> None:
    """The clock may jump between the end of a bulk batch and the choice of the next."""
    world = Simulated(LARGE)
    world.submit(40, 40, priority=Priority.BULK)
    await settle()
    quick = world.submit(5)
    await settle()
    batch, answer = world.running.pop(0)
    answer.set_result(batch.payloads)
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the batch has ended
    world.now += 100
    await settle()
    assert has_interactive(world.batches[1])
    await world.finish()
    assert quick.done()
    await stop(world)


async def test_an_interactive_deadline_wins_over_aged_bulk_work() -> None:
    world = Simulated(LARGE)
    world.submit(LONG, LONG, priority=Priority.BULK)
    await settle()
    world.submit(50)
    calls = [world.submit(50, deadline=world.now + 10 + i) for i in range(10)]
    world.now += 1  # slower than thought: bulk work would be due after the eighth
    while not all(call.done() for call in calls):
        await world.step()
    assert [len((await call).results) for call in calls] == [1] * 10
    assert [batch.priority for batch in world.batches].count(Priority.BULK) == 1 + (
        world.batches[-1].priority is Priority.BULK
    )
    await stop(world)


async def test_a_deadline_that_bulk_work_does_not_endanger_does_not_hold_it_up() -> None:
    world = Simulated(LARGE)
    world.submit(LONG, LONG, priority=Priority.BULK)
    await settle()
    calls = [world.submit(50, deadline=world.now + 1000) for _ in range(20)]
    for _ in range(11):
        await world.step()
    assert world.batches[10].priority is Priority.BULK
    await stop(world)
    await asyncio.gather(*calls, return_exceptions=True)


async def test_deadlines_defer_bulk_work_but_not_for_ever() -> None:
    """Each call could be served before the long text and not after; they never end."""
    world = Simulated(LARGE)
    bulk = world.submit(LONG, LONG, priority=Priority.BULK)
    await settle()
    calls: list[asyncio.Task[Outcome[Any]]] = []
    steps = 0
    while not bulk.done():
        calls.append(world.submit(50, deadline=world.now + 4.3 if steps else None))
        await settle()
        await world.step()
        steps += 1
    assert steps <= 2 + 11 * LONG // 50  # eleven turns of interactive work at most, for one of bulk
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, Overloaded | DeadlineTooShort) for outcome in outcomes) <= 2
    await stop(world)


async def test_the_bulk_queue_does_not_count_in_an_interactive_estimate() -> None:
    world = Simulated(LARGE)
    world.submit(*[LONG] * 100, priority=Priority.BULK)
    await settle()
    in_time = world.submit(10, deadline=world.now + LONG / RATE + 0.2)
    await settle()
    await world.step()
    await world.step()
    assert (await in_time).results
    with pytest.raises(Overloaded):  # what runs does count
        await world.submit(10, deadline=world.now + 0.2)
    await stop(world)


async def test_bulk_requests_leave_room_in_the_queue_for_interactive_ones() -> None:
    world = Simulated(LIMITS)
    world.submit(40, priority=Priority.BULK)
    await settle()
    accepted = [world.submit(25, priority=Priority.BULK) for _ in range(20)]
    await settle()
    assert world.scheduler.stats().queued_tokens == 225  # three quarters of 300
    refused = [task for task in accepted if task.done()]
    assert refused
    for task in refused:
        with pytest.raises(Overloaded) as full:
            await task
        assert full.value.retry_after_s > 0
    call = world.submit(75)
    await settle()
    assert not call.done()
    await world.finish_all()
    assert (await call).results


async def test_a_bulk_request_alone_may_fill_the_whole_queue() -> None:
    world = Simulated(LIMITS)
    job = world.submit(*[30] * 10, priority=Priority.BULK)
    await settle()
    await world.finish_all()
    assert len((await job).results) == 10


async def test_long_items_have_an_estimate_of_their_own() -> None:
    """Attention makes a long text slower per token; deadlines are held against what such a step took."""
    world = Simulated(LARGE)
    for _ in range(20):
        world.submit(LONG)
        await settle()
        await world.step(slower=3)
        world.submit(50)
        await settle()
        await world.step()
    assert world.scheduler.stats().tokens_per_second == pytest.approx(RATE)
    with pytest.raises(DeadlineTooShort):
        await world.submit(LONG, deadline=world.now + 11)
    in_time = world.submit(LONG, deadline=world.now + 13)
    await settle()
    late = world.submit(5, deadline=world.now + 9)  # behind the one that runs: 12 s
    with pytest.raises(Overloaded):
        await late
    await world.step(slower=3)
    assert (await in_time).results
    many = world.submit(*[50] * 16, deadline=world.now + 8.5)  # its own steps are quick
    await settle()
    while world.running:
        await world.step()
    assert len((await many).results) == 16


async def test_a_real_engine_gives_bulk_no_two_steps_while_a_call_waits(checkpoints: Callable[..., Path]) -> None:
    """The least patience, and long texts over every limit: each call sees the end of one bulk step at most."""
    engine = EmbedEngine.load(
        EngineSettings(str(checkpoints()), max_tokens=LIMIT, batch_tokens=64, queue_tokens=20_000, threads=1)
    )
    engine._limits = replace(engine._limits, bulk=64, bulk_patience_s=0.0)
    reports: list[BatchReport] = []
    engine.on_batch = reports.append
    engine.start()
    release = threading.Event()
    engine._runner._launcher.submit(release.wait)  # the model is slow: the first bulk step takes until we say so
    job = asyncio.ensure_future(engine.embed([f"{i} " * LIMIT for i in range(40)], priority=Priority.BULK))
    while not engine.stats().inflight_tokens:  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(0)
    seen: list[int] = []
    while not job.done():
        before = len(reports)
        call = asyncio.ensure_future(engine.embed(["gravity"]))
        await asyncio.sleep(0)
        release.set()
        await call
        seen.append(sum(report.priority is Priority.BULK for report in reports[before:]))
    assert len((await job).items) == 40
    assert max(seen) <= 1
    assert len(seen) >= 20  # they took turns
    engine.close()
