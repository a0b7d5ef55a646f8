"""Accounts of callers, in a time of the tests' own."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.callers import quotas as module
from gateway.callers.policies import Policies
from gateway.callers.quotas import OTHER, Quotas
from gateway.telemetry import GatewayMetrics
from services.runtime.callers import Caller, calling
from services.runtime.errors import DeadlineTooShort, PoolSaturated, QuotaExceeded
from services.runtime.telemetry.setup import Telemetry
from tests.support.certificates import replace
from tests.support.virtual_time import virtual_time

RULES = """
[default]
tokens_per_second = 100
[callers.fast]
tokens_per_second = 10_000
burst_tokens = 1000
[callers.narrow]
tokens_per_second = 1_000_000
tokens_in_flight = 100
"""


class Made:
    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        path.write_text(RULES)
        self.path, self.clock = path, clock
        self.quotas = Quotas(Policies(path), GatewayMetrics(Telemetry()), clock)

    async def use(self, estimate: int, used: int | None = None, takes_s: float = 0.0) -> None:
        async with self.quotas.spending(estimate) as spending:
            await asyncio.sleep(takes_s)
            spending.tokens = estimate if used is None else used

    async def refusal(self, tokens: int) -> QuotaExceeded:
        with pytest.raises(QuotaExceeded) as refused:
            await self.use(tokens)
        return refused.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "callers.toml"


@contextmanager
def made(path: Path, caller: str = "fast") -> Iterator[Made]:
    with virtual_time() as clock, calling(Caller(caller)):
        yield Made(path, clock)


async def test_over_the_rate_a_call_is_refused_and_told_when_to_come_back(path: Path) -> None:
    with made(path) as m:
        await m.use(1000)
        refused = await m.refusal(500)
        assert (refused.caller, refused.limit) == ("fast", "10000 tokens per second")
        assert refused.retry_after_s == pytest.approx(0.05)
        await asyncio.sleep(refused.retry_after_s)
        await m.use(500)


async def test_callers_have_accounts_of_their_own_and_strangers_too(path: Path) -> None:
    with made(path) as m:
        await m.use(1000)
        for stranger in ("", "x", "y"):
            with calling(Caller(stranger)):
                await m.use(100)
                assert (await m.refusal(50)).retry_after_s == pytest.approx(0.5)


async def test_what_a_call_used_replaces_the_estimate(path: Path) -> None:
    with made(path) as m:
        await m.use(1000, used=100)
        await m.use(900, used=1900)
        assert (await m.refusal(1)).retry_after_s == pytest.approx(0.1 + 1 / 10_000)


@pytest.mark.parametrize("problem", [PoolSaturated(1.0), DeadlineTooShort()])
async def test_a_call_that_fails_costs_nothing(path: Path, problem: Exception) -> None:
    with made(path) as m:
        for _ in range(3):
            with pytest.raises(type(problem)):
                async with m.quotas.spending(1000):
                    raise problem
        await m.use(1000)


@pytest.mark.parametrize("error", [TimeoutError, asyncio.CancelledError])
async def test_a_call_that_is_cut_off_costs_its_estimate(path: Path, error: type[BaseException]) -> None:
    with made(path) as m:
        with pytest.raises(error):
            async with m.quotas.spending(1000):
                raise error
        await m.refusal(1)


async def test_tokens_in_flight_are_limited_and_a_larger_call_runs_alone(path: Path) -> None:
    with made(path, "narrow") as m:
        async with m.quotas.spending(60):
            await m.use(40)
            assert (await m.refusal(41)).limit == "100 tokens in flight"
        async with m.quotas.spending(5000):
            await m.refusal(1)
        await m.use(100)


@pytest.mark.parametrize("error", [0.5, 1.0, 2.0], ids=["too low", "right", "too high"])
@pytest.mark.parametrize("paced", [True, False])
async def test_a_caller_with_too_much_work_uses_its_quota_to_within_a_twentieth(
    path: Path, paced: bool, error: float
) -> None:
    numbers, used = random.Random(1), 0

    async def work() -> None:
        nonlocal used
        while True:
            tokens = numbers.randint(20, 120)
            try:
                await m.use(int(error * tokens), tokens, takes_s=0.02)
            except QuotaExceeded as refused:
                await asyncio.sleep(refused.retry_after_s)
            else:
                used += tokens

    with made(path) as m:
        async with AsyncExitStack() as stack:
            if paced:
                stack.enter_context(m.quotas.paced())
            workers = [asyncio.create_task(work()) for _ in range(8)]
            await asyncio.sleep(10)
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        assert used == pytest.approx(1000 + 10 * 10_000, rel=0.05)


async def test_paced_calls_wait_in_their_order_and_none_is_lost(path: Path) -> None:
    order: list[int] = []
    with made(path) as m, m.quotas.paced():
        began = m.clock()

        async def chunk(number: int) -> None:
            await m.use(1000)
            order.append(number)

        await asyncio.gather(*map(chunk, range(20)))
        assert m.clock() - began == pytest.approx(1.9)
    assert order == list(range(20))


async def test_a_paced_call_waits_until_another_has_ended(path: Path) -> None:
    with made(path, "narrow") as m:
        async with AsyncExitStack() as running:
            await running.enter_async_context(m.quotas.spending(80))
            with m.quotas.paced():
                waiting = asyncio.create_task(m.use(50))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        began = m.clock()
        await waiting
        assert m.clock() == began


async def test_a_paced_call_that_is_cancelled_gives_up_its_place(path: Path) -> None:
    with made(path) as m, m.quotas.paced():
        await m.use(1000)
        first, second = asyncio.create_task(m.use(1000)), asyncio.create_task(m.use(10))
        await asyncio.sleep(0)
        first.cancel()
        began = m.clock()
        await second
        assert m.clock() - began == pytest.approx(0.001)


async def test_a_new_file_holds_for_calls_that_wait(path: Path) -> None:
    with made(path, "x") as m, m.quotas.paced():
        await m.use(100)
        waiting = asyncio.create_task(m.use(100))
        await asyncio.sleep(0)
        replace(path, b"[default]\ntokens_per_second = 100\n[callers.fast]\n")
        with calling(Caller("fast")):
            await m.use(10**9)
        replace(path, b"[default]\n")
        began = m.clock()
        await waiting
        assert m.clock() - began <= 1.0


async def test_a_stream_accepts_no_more_than_its_caller_may_have(path: Path) -> None:
    with made(path, "narrow") as m:
        assert m.quotas.window(65536) == 100
        with calling(Caller("other")):
            assert m.quotas.window(65536) == 1000
            assert m.quotas.window(500) == 500
        replace(path, b"")
        assert m.quotas.window(65536) == 65536


async def test_labels_are_names_that_a_file_lists(path: Path) -> None:
    with made(path) as m:
        assert m.quotas.label(Caller("fast")) == "fast"
        assert m.quotas.label(Caller("of-a-token", listed=True)) == "of-a-token"
        for stranger in (Caller(), Caller("CN of a certificate"), Caller(listed=True)):
            assert m.quotas.label(stranger) == OTHER


async def test_accounts_of_callers_that_are_gone_are_dropped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ACCOUNTS", 3)
    with made(path) as m:
        await m.use(1000)
        for number in range(50):
            with calling(Caller(str(number))):
                await m.use(1)
            await asyncio.sleep(0.01)
        assert len(m.quotas._accounts) <= 4
        with calling(Caller("0")):
            await m.use(100)
