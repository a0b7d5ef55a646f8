"""Single-flight: computed once, shared, and nobody's to cancel for the others."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from gateway.cache.single_flight import SingleFlight
from services.runtime.errors import DeadlineTooShort, PoolSaturated, UpstreamUnavailable

Flights = SingleFlight[str, str]


class Work:
    """Computes a key when `gate` opens; counts."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.keys: list[str] = []
        self.cancelled = False
        self.error: Exception | None = None

    async def __call__(self, keys: Sequence[str], resolve: Callable[[str, str], None]) -> None:
        self.keys += keys
        self.begun.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error:
            raise self.error
        for key in keys:
            resolve(key, key.upper())


async def test_a_thousand_callers_cost_one_computation() -> None:
    flights, work = Flights(), Work()
    callers = [asyncio.create_task(flights.get(["a"], work, None)) for _ in range(1000)]
    await work.begun.wait()
    work.gate.set()
    assert await asyncio.gather(*callers) == [{"a": "A"}] * 1000
    assert work.keys == ["a"]
    assert len(flights) == 0


async def test_only_what_nobody_computes_is_computed() -> None:
    flights, first, second = Flights(), Work(), Work()
    one = asyncio.create_task(flights.get(["a", "b"], first, None))
    await first.begun.wait()
    two = asyncio.create_task(flights.get(["b", "c"], second, None))
    await second.begun.wait()
    assert second.keys == ["c"]
    first.gate.set()
    second.gate.set()
    assert await one == {"a": "A", "b": "B"}
    assert await two == {"b": "B", "c": "C"}


async def test_a_caller_that_gives_up_takes_nothing_from_the_others() -> None:
    flights, work, other = Flights(), Work(), Work()
    leader = asyncio.create_task(flights.get(["a"], work, None))
    await work.begun.wait()
    follower = asyncio.create_task(flights.get(["a"], other, None))
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    work.gate.set()
    assert await follower == {"a": "A"}
    assert not work.cancelled
    assert other.keys == []


async def test_the_last_one_to_give_up_ends_it() -> None:
    flights, work = Flights(), Work()
    callers = [asyncio.create_task(flights.get(["a"], work, None)) for _ in range(3)]
    await work.begun.wait()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert len(flights) == 0
    again = Work()
    again.gate.set()
    assert await flights.get(["a"], again, None) == {"a": "A"}
    assert work.cancelled


async def test_a_failure_is_the_leaders_and_followers_try_for_themselves() -> None:
    flights, work, other = Flights(), Work(), Work()
    work.error = ValueError("not enough time")
    leader = asyncio.create_task(flights.get(["a"], work, None))
    await work.begun.wait()
    follower = asyncio.create_task(flights.get(["a", "b"], other, None))
    await other.begun.wait()
    work.gate.set()
    other.gate.set()
    with pytest.raises(ValueError, match="not enough time"):
        await leader
    assert await follower == {"a": "A", "b": "B"}
    assert sorted(other.keys) == ["a", "b"]


async def test_all_who_wait_for_a_worker_that_fails_fail_together() -> None:
    flights, work = Flights(), Work()
    work.error = UpstreamUnavailable("embed worker")
    callers = [asyncio.create_task(flights.get(["a"], work, None)) for _ in range(40)]
    await work.begun.wait()
    work.gate.set()
    assert await asyncio.gather(*callers, return_exceptions=True) == [work.error] * 40
    assert work.keys == ["a"]


async def test_those_with_more_time_than_the_first_go_again_together() -> None:
    flights, work, other = Flights(), Work(), Work()
    work.error = DeadlineTooShort()
    first = asyncio.create_task(flights.get(["a"], work, 60))
    await work.begun.wait()
    as_short = asyncio.create_task(flights.get(["a"], other, 30))
    longer = [asyncio.create_task(flights.get(["a"], other, None)) for _ in range(20)]
    await asyncio.sleep(0)
    work.gate.set()
    await other.begun.wait()
    other.gate.set()
    assert await asyncio.gather(*longer) == [{"a": "A"}] * 20
    assert other.keys == ["a"]
    ended = await asyncio.gather(first, as_short, return_exceptions=True)
    assert list(ended) == [work.error] * 2


@pytest.mark.parametrize("error", [ValueError("somebody's text"), PoolSaturated(1.0)])
async def test_a_request_that_may_be_at_fault_is_blamed_once(error: Exception) -> None:
    """Not once for each of those who wait. The queue may be too long for its deadline only."""
    flights, work = Flights(), Work()
    work.error = error
    callers = [asyncio.create_task(flights.get(["a"], work, None)) for _ in range(40)]
    await work.begun.wait()
    work.gate.set()
    assert await asyncio.gather(*callers, return_exceptions=True) == [work.error] * 40
    assert work.keys == ["a", "a"]  # the first, and one for all who waited for it


async def test_time_out() -> None:
    flights, work = Flights(), Work()
    with pytest.raises(TimeoutError):
        await flights.get(["a"], work, 0.01)
    await asyncio.sleep(0)
    assert work.cancelled
    assert len(flights) == 0


async def test_results_arrive_as_they_are_ready() -> None:
    flights = Flights()
    rest = asyncio.Event()

    async def work(keys: Sequence[str], resolve: Callable[[str, str], None]) -> None:
        resolve("a", "A")
        await rest.wait()
        resolve("b", "B")

    leader = asyncio.create_task(flights.get(["a", "b"], work, None))
    await asyncio.sleep(0)
    assert await flights.get(["a"], work, 1) == {"a": "A"}
    rest.set()
    assert await leader == {"a": "A", "b": "B"}


async def test_close_ends_everything() -> None:
    flights, work = Flights(), Work()
    caller = asyncio.create_task(flights.get(["a"], work, None))
    await work.begun.wait()
    await flights.close()
    with pytest.raises(asyncio.CancelledError):
        await caller
