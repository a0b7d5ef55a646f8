"""The scheduler by itself: as a state machine against its promises, then case by case."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.engine.errors import (
    DeadlineTooShort,
    Draining,
    EngineError,
    ModelBroken,
    NonFinite,
    Overloaded,
)
from services.engine.jobs import Batch, Limits, Outcome
from services.engine.scheduler import Scheduler
from services.engine.throughput import Throughput
from services.engine.types import Priority

RATE = 100.0  # tokens per second, at first
LIMITS = Limits(batch=50, bulk=40, queue=300, mixed=20)


class World:
    """A scheduler whose model answers when told to, on a clock that moves when told to."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now = 1000.0
        self.limits = limits
        self.batches: list[Batch[Any, Any]] = []
        self.running: list[tuple[Batch[Any, Any], asyncio.Future[list[Any]]]] = []
        self.scheduler: Scheduler[Any, Any] = Scheduler(
            self.compute, limits, Throughput({limits.batch: RATE}, limits.batch), lambda: self.now
        )

    async def compute(self, batch: Batch[Any, Any]) -> list[Any]:
        self.batches.append(batch)
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.running.append((batch, answer))
        return await answer

    async def finish(self, error: BaseException | None = None) -> None:
        """The oldest running batch ends: every payload is its own answer."""
        batch, answer = self.running.pop(0)
        if error:
            answer.set_exception(error)
        else:
            answer.set_result([("done", payload) for payload in batch.payloads])
        await settle()

    async def finish_all(self) -> None:
        while self.running:
            await self.finish()

    def submit(
        self, *costs: int, priority: Priority = Priority.INTERACTIVE, **kwargs: Any
    ) -> asyncio.Task[Outcome[Any]]:
        payloads = [object() for _ in costs]
        return asyncio.ensure_future(self.scheduler.submit(payloads, costs, priority=priority, **kwargs))


def has_interactive(batch: Batch[Any, Any]) -> bool:
    return any(job.priority is Priority.INTERACTIVE for job, _, _ in batch.parts)


async def settle() -> None:
    """Lets everything that is ready run."""
    for _ in range(6):
        await asyncio.sleep(0)


@dataclass
class Sent:
    """What a caller knows of its request."""

    number: int
    priority: Priority
    costs: list[int]
    task: asyncio.Task[Outcome[Any]]
    cancelled: bool = False


class SchedulerMachine(RuleBasedStateMachine):
    """Any history of requests, cancellations, answers and passing time."""

    limits = LIMITS

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = self.run(self.make(lambda: World(self.limits)))
        self.sent: list[Sent] = []
        self.seen = 0  # batches already checked
        self.started: dict[Priority, int] = dict.fromkeys(
            Priority, -1
        )  # number of the last request served, per priority
        self.items: set[tuple[int, int]] = set()  # (request, item) already run
        self.draining = False

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    async def make(self, thing: Callable[[], World]) -> World:
        return thing()

    @rule(
        costs=st.lists(st.integers(1, 70), min_size=1, max_size=8),
        shared=st.sampled_from([0, 0, 5, 60]),
        priority=st.sampled_from(Priority),
        patience=st.sampled_from([None, None, 0.1, 2.0, 100.0]),
    )
    def submit(self, costs: list[int], shared: int, priority: Priority, patience: float | None) -> None:
        number = len(self.sent)
        deadline = None if patience is None else self.world.now + patience

        async def send() -> asyncio.Task[Outcome[Any]]:
            payloads = [(number, i) for i in range(len(costs))]
            task: asyncio.Task[Outcome[Any]] = asyncio.ensure_future(
                self.world.scheduler.submit(
                    payloads, costs, shared=shared, priority=priority, deadline=deadline, context=number
                )
            )
            await settle()
            return task

        self.sent.append(Sent(number, priority, costs, self.run(send())))

    @precondition(lambda self: any(not sent.task.done() for sent in self.sent))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sent = data.draw(st.sampled_from([s for s in self.sent if not s.task.done()]))

        async def cancel() -> None:
            sent.task.cancel()
            sent.cancelled = True
            await settle()

        self.run(cancel())

    @precondition(lambda self: self.world.running)
    @rule(data=st.data())
    def cancel_as_the_batch_ends(self, data: st.DataObject) -> None:
        """In the same turn of the loop, before the cancelled task has noticed."""
        waiting = [s for s in self.sent if not s.task.done()]

        async def both() -> None:
            if waiting:
                sent = data.draw(st.sampled_from(waiting))
                sent.task.cancel()
                sent.cancelled = True
            await self.world.finish()

        self.run(both())

    @precondition(lambda self: self.world.running)
    @rule(fails=st.booleans(), took=st.sampled_from([0.01, 0.5, 5.0]))
    def finish(self, fails: bool, took: float) -> None:
        self.world.now += took
        self.run(self.world.finish(ValueError("a bug") if fails else None))

    @rule(seconds=st.sampled_from([0.05, 1.5, 20.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @invariant()
    def batches_keep_the_rules(self) -> None:
        for index in range(self.seen, len(self.world.batches)):
            self.check(self.world.batches[index])
            self.check_turn(index)
        self.seen = len(self.world.batches)

    def check_turn(self, index: int) -> None:
        """While interactive work waits, bulk work has no two turns in a row."""
        waits = any(
            sent.priority is Priority.INTERACTIVE
            and not sent.task.done()
            and (sent.number, len(sent.costs) - 1) not in self.items
            for sent in self.sent
        )
        if waits and index + 1 == len(self.world.batches) and self.world.batches[index].priority is Priority.BULK:
            assert index == 0 or self.world.batches[index - 1].priority is Priority.INTERACTIVE

    @invariant()
    def bulk_work_under_way_is_limited_together(self) -> None:
        bulk = [batch for batch, _ in self.world.running if batch.priority is Priority.BULK]
        alone = len(bulk) == 1 and sum(stop - start for _, start, stop in bulk[0].parts[:1]) == 1
        assert alone or sum(batch.cost for batch in bulk if not has_interactive(batch)) <= self.limits.bulk

    def check(self, batch: Batch[Any, Any]) -> None:
        cost, count, bulk = 0, 0, 0
        for job, start, stop in batch.parts:
            number = job.context
            assert isinstance(number, int)
            sent = self.sent[number] if number < len(self.sent) else None
            assert stop > start
            part = job.shared + sum(job.costs[start:stop])
            cost, count = cost + part, count + stop - start
            bulk += part if job.priority is Priority.BULK else 0
            if sent:
                assert not sent.cancelled
            # First in, first out: never behind a later request, never twice, never out of order within one.
            assert number >= self.started[job.priority]
            self.started[job.priority] = number
            for item in range(start, stop):
                assert (number, item) not in self.items
                assert item == 0 or (number, item - 1) in self.items
                self.items.add((number, item))
        assert cost == batch.cost
        assert cost <= self.limits.batch or count == 1
        if batch.priority is Priority.INTERACTIVE and bulk:
            assert cost <= self.limits.mixed
        if bulk == cost:
            assert cost <= self.limits.bulk or count == 1

    @invariant()
    def the_books_balance(self) -> None:
        stats = self.world.scheduler.stats()
        assert 0 <= stats.queued_tokens <= self.limits.queue
        assert stats.inflight_tokens == sum(batch.cost for batch, _ in self.world.running)
        assert len(self.world.running) <= self.limits.depth

    @invariant()
    def never_idle_while_work_waits(self) -> None:
        assert self.world.running or self.world.scheduler.stats().queued_tokens == 0

    def teardown(self) -> None:
        self.run(self.world.finish_all())
        self.batches_keep_the_rules()
        assert self.world.scheduler.stats().queued_tokens == 0
        for sent in self.sent:
            assert sent.task.done()  # and a task is done exactly once
            if sent.cancelled:
                assert sent.task.cancelled()
                continue
            error = sent.task.exception()
            if error is None:
                results = sent.task.result().results
                assert results == [("done", (sent.number, i)) for i in range(len(sent.costs))]
            else:
                assert isinstance(error, Overloaded | DeadlineTooShort | ValueError)
        self.loop.close()


class OverlappingMachine(SchedulerMachine):
    """The same with two batches under way."""

    limits = replace(LIMITS, depth=2)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestOverlapping = OverlappingMachine.TestCase
TestOverlapping.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@pytest.fixture
def world() -> World:
    return World()


async def test_requests_of_one_turn_share_a_batch(world: World) -> None:
    tasks = [world.submit(10) for _ in range(3)]
    await settle()
    assert [batch.cost for batch in world.batches] == [30]
    await world.finish_all()
    assert [len((await task).results) for task in tasks] == [1, 1, 1]


async def test_interactive_goes_first_and_is_filled_up_with_little_bulk(world: World) -> None:
    world.submit(50)  # keeps the model busy
    await settle()
    bulk, quick = world.submit(*[6] * 20, priority=Priority.BULK), world.submit(5)
    await settle()
    await world.finish()
    assert world.batches[1].priority is Priority.INTERACTIVE
    assert world.batches[1].cost == 5 + 2 * 6
    await world.finish()
    assert quick.done()
    assert not bulk.done()
    await world.finish_all()
    assert bulk.done()


async def test_bulk_is_served_in_the_end_however_much_is_interactive(world: World) -> None:
    bulk = world.submit(40, priority=Priority.BULK)
    await settle()
    second = world.submit(40, priority=Priority.BULK)
    await settle()
    for _ in range(10):
        world.submit(50)
        await settle()
        world.now += 0.4
        await world.finish()
    assert bulk.done()
    assert second.done()
    assert Priority.INTERACTIVE in [batch.priority for batch in world.batches[1:]]


async def test_callers_that_take_turns_get_short_batches() -> None:
    limits = Limits(batch=2000, bulk=1000, queue=100_000, mixed=32)
    world = World(limits)
    greedy = [world.submit(*[50] * 100, caller="greedy") for _ in range(2)]
    await settle()
    world.now += 11.0
    await world.finish()
    assert world.batches[1].cost == 2000
    modest = world.submit(50, caller="modest")
    await settle()
    await world.finish()
    assert world.batches[2].cost <= 256
    assert world.batches[2].parts[0][0].caller == "modest"
    world.now += 11.0
    await world.finish()
    assert world.batches[3].cost == 2000
    await world.finish_all()
    await asyncio.gather(*greedy, modest)


async def test_a_large_request_is_spread_over_steps_and_pays_its_prefix_in_each(world: World) -> None:
    task = world.submit(*[15] * 5, shared=10)
    await settle()
    await world.finish_all()
    assert [batch.cost for batch in world.batches] == [40, 40, 25]
    assert len((await task).results) == 5


async def test_an_item_over_the_budget_runs_alone(world: World) -> None:
    tasks = world.submit(10), world.submit(120), world.submit(10)
    await settle()
    await world.finish_all()
    assert [batch.cost for batch in world.batches] == [10, 120, 10]
    assert all(task.done() for task in tasks)


async def test_two_batches_are_under_way_where_the_device_overlaps_them() -> None:
    world = World(Limits(batch=50, bulk=50, queue=300, mixed=20, depth=2))
    for _ in range(3):
        world.submit(50)
    await settle()
    assert len(world.running) == 2
    await world.finish_all()
    assert len(world.batches) == 3


async def test_refused_when_the_queue_is_full_with_an_estimate_of_when_to_return(world: World) -> None:
    world.submit(50)
    await settle()
    world.submit(*[50] * 6)
    await settle()
    with pytest.raises(Overloaded) as refused:
        await world.submit(20)
    assert refused.value.retry_after_s == pytest.approx((50 + 20) / RATE)
    await world.finish_all()


async def test_refused_at_once_when_the_deadline_cannot_be_met(world: World) -> None:
    world.submit(*[50] * 4)
    await settle()
    # 2 s are ahead of it. Estimates are not exact: the queue may take two fifths of what is spare.
    in_time = world.submit(10, deadline=world.now + 4.5)
    await settle()
    for patience in (4.2, 1.0, 0.11):
        with pytest.raises(Overloaded):
            await world.submit(10, deadline=world.now + patience)
    with pytest.raises(DeadlineTooShort):  # not even if it were alone
        await world.submit(10, deadline=world.now + 0.09)
    await world.finish_all()
    assert (await in_time).results


async def test_the_least_patient_bound_the_queue_for_all_until_it_is_empty(world: World) -> None:
    world.submit(50)
    await settle()
    world.submit(50, 50)
    await settle()
    assert not (patient := world.submit(10, deadline=world.now + 100)).done()
    with pytest.raises(Overloaded):  # 1.1 s are before it, and it bears 0.4 * (2 - 0.5 - 0.1)
        await world.submit(10, deadline=world.now + 2)
    for deadline in (world.now + 100, None):
        with pytest.raises(Overloaded):
            await world.submit(10, deadline=deadline)
    world.now += 0.5
    await world.finish()  # 60 tokens wait: 0.6 s
    with pytest.raises(Overloaded):
        await world.submit(10, deadline=world.now + 100)
    await world.finish_all()
    assert (await patient).results
    first = world.submit(50)
    await settle()
    world.submit(50, 50)
    await settle()
    again = world.submit(10, deadline=world.now + 100)
    await world.finish_all()
    assert (await first).results
    assert (await again).results


async def test_dropped_when_its_turn_comes_too_late(world: World) -> None:
    world.submit(50)
    await settle()
    late = world.submit(10, deadline=world.now + 1.0)
    await settle()
    world.now += 5
    await world.finish_all()
    with pytest.raises(DeadlineTooShort):
        await late
    assert len(world.batches) == 1


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 6])
async def test_a_caller_that_gives_up_shifts_no_result_to_another(world: World, turns: int) -> None:
    """Results are told apart by their places, which stay as they are, whenever one of a batch's callers goes."""
    one, two, three = (
        asyncio.ensure_future(world.scheduler.submit(payloads, [5] * len(payloads), priority=Priority.INTERACTIVE))
        for payloads in (["a", "b"], ["c"], ["d", "e"])
    )
    await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    one.cancel()
    await settle()
    await world.finish_all()
    assert (await two).results == [("done", "c")]
    assert (await three).results == [("done", "d"), ("done", "e")]


async def test_a_request_that_fails_shifts_no_result_to_another() -> None:
    """One request lies in two batches that overlap, of which the first fails."""
    world = World(replace(LIMITS, depth=2))
    submit = world.scheduler.submit
    large = asyncio.ensure_future(submit(["a", "b"], [LIMITS.batch, 5], priority=Priority.INTERACTIVE))
    small = asyncio.ensure_future(submit(["c"], [5], priority=Priority.INTERACTIVE))
    await settle()
    assert [batch.payloads for batch in world.batches] == [["a"], ["b", "c"]]
    await world.finish(ValueError("a bug"))
    await world.finish()
    assert (await small).results == [("done", "c")]
    with pytest.raises(ValueError, match="a bug"):
        await large


async def test_a_wrong_estimate_does_not_lock_callers_out(world: World) -> None:
    for _ in range(20):
        world.submit(50)
        await settle()
        world.now += 100  # the machine is asleep most of the time
        await world.finish()

    async def refused() -> bool:
        try:
            task = world.submit(50, deadline=world.now + 2.0)
            await settle()
            await world.finish_all()
            await task
        except DeadlineTooShort:
            return True
        return False

    assert [await refused() for _ in range(100)] == [True] * 100  # each is cheap to refuse, and proves nothing
    world.now += 5
    outcomes = []
    for _ in range(20):  # one request is tried when nothing has been for a while; it tells more than the estimate
        outcomes += [await refused(), await refused()]
        world.now += 5
    assert not any(outcomes[::2])
    assert outcomes[1]
    assert not outcomes[-1]


async def test_one_failed_item_leaves_its_neighbours(world: World) -> None:
    task = world.submit(10, 10)
    await settle()
    _, answer = world.running.pop()
    answer.set_result([NonFinite(), "fine"])
    await settle()
    first, second = (await task).results
    assert isinstance(first, NonFinite)
    assert second == "fine"


async def test_a_broken_model_fails_everything_and_refuses_from_then_on(world: World) -> None:
    tasks = [world.submit(50) for _ in range(3)]
    await settle()
    await world.finish(ModelBroken("gone"))
    for task in tasks:
        with pytest.raises(ModelBroken):
            await task
    with pytest.raises(ModelBroken):
        await world.submit(1)


async def test_drain_answers_what_was_admitted_and_refuses_the_rest(world: World) -> None:
    tasks = [world.submit(50) for _ in range(3)]
    await settle()
    drained = asyncio.ensure_future(world.scheduler.drain())
    await settle()
    with pytest.raises(Draining):
        await world.submit(1)
    assert not drained.done()
    await world.finish_all()
    await drained
    assert all(task.done() and not task.exception() for task in tasks)


async def test_close_fails_what_is_left(world: World) -> None:
    task = world.submit(50, 50)
    await settle()
    world.scheduler.close()
    with pytest.raises(Draining):
        await task
    await world.finish_all()


async def test_time_spent_is_told_apart(world: World) -> None:
    world.submit(50)
    await settle()
    task = world.submit(30, 30)
    await settle()
    for seconds in (1.0, 2.0, 4.0):
        world.now += seconds
        await world.finish()
    outcome = await task
    assert (outcome.queue_s, outcome.forward_s) == (1.0, 6.0)


async def test_the_measured_rate_follows(world: World) -> None:
    for _ in range(20):
        task = world.submit(50)
        await settle()
        world.now += 0.1
        await world.finish()
        await task
    assert world.scheduler.stats().tokens_per_second == pytest.approx(500, rel=0.03)
    stats = world.scheduler.stats()
    assert stats.seconds == 0.0


@pytest.mark.timeout(20)
async def test_a_hundred_thousand_items_take_linear_time() -> None:
    async def instant(batch: Batch[int, int]) -> list[int | EngineError]:
        return list(batch.payloads)

    limits = Limits(batch=1000, bulk=1000, queue=10**6, mixed=100)
    scheduler: Scheduler[int, int] = Scheduler(instant, limits, Throughput({1000: RATE}, 1000))
    outcome = await scheduler.submit(range(100_000), [5] * 100_000, priority=Priority.BULK)
    assert outcome.results == list(range(100_000))
    many: list[Awaitable[Outcome[int]]] = [scheduler.submit([i], [5], priority=Priority.BULK) for i in range(20_000)]
    assert [outcome.results for outcome in await asyncio.gather(*many)] == [[i] for i in range(20_000)]
