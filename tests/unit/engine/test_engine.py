"""The engines as their callers meet them: odd input, many texts, cancellation, the end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from services.engine.devices.cpu import Cpu
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import (
    CheckpointError,
    DeadlineTooShort,
    Draining,
    InvalidInput,
    ModelBroken,
    NonFinite,
    Overloaded,
)
from services.engine.packing.packing import Packed
from services.engine.types import BatchReport, EmbedItem, EngineSettings, Failure, InputType, Priority, Truncation
from tests.unit.engine.conftest import LIMIT


@pytest.fixture
def options(checkpoints: Callable[..., Path]) -> EngineSettings:
    return EngineSettings(str(checkpoints()), max_tokens=LIMIT, batch_tokens=400, queue_tokens=20_000, threads=1)


@pytest.fixture
async def embed(options: EngineSettings) -> AsyncIterator[EmbedEngine]:
    engine = EmbedEngine.load(options)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
async def rerank(options: EngineSettings) -> AsyncIterator[RerankEngine]:
    engine = RerankEngine.load(options)
    engine.start()
    yield engine
    engine.close()


def vectors(items: list[EmbedItem | Failure]) -> np.ndarray:
    return np.stack([item.vector for item in items if isinstance(item, EmbedItem)])


async def test_nothing_in_nothing_out(embed: EmbedEngine, rerank: RerankEngine) -> None:
    assert (await embed.embed([])).items == []
    assert (await rerank.rerank("q", [])).items == []


async def test_a_megabyte_of_text_is_cut_and_does_not_hold_up_others(embed: EmbedEngine) -> None:
    huge = asyncio.ensure_future(embed.embed(["word " * 200_000, "\n" * 1_000_000, "a" * 1_000_000]))
    quick = await embed.embed(["quick"])
    assert not huge.done()
    items = (await huge).items
    assert [(item.tokens, item.truncated) for item in items if isinstance(item, EmbedItem)] == [(LIMIT, True)] * 3
    assert not quick.items[0].truncated  # type: ignore[union-attr]


@pytest.mark.timeout(30)
async def test_a_hundred_thousand_texts_are_refused_before_any_work(embed: EmbedEngine) -> None:
    with pytest.raises(InvalidInput, match="split it") as refused:
        await embed.embed(["gravity"] * 100_000)
    assert refused.value.field == "texts"
    assert embed.stats().queued_tokens == 0


@pytest.mark.timeout(30)
async def test_a_hundred_thousand_texts_are_embedded_where_the_queue_is_long_enough(options: EngineSettings) -> None:
    from dataclasses import replace

    engine = EmbedEngine.load(replace(options, queue_tokens=10**6, batch_tokens=4096))
    engine.start()
    result = await engine.embed([f"gravity {i % 7}" for i in range(100_000)], priority=Priority.BULK)
    engine.close()
    assert len(result.items) == 100_000
    assert np.ptp(vectors(result.items)[::7], axis=0).max() <= 1e-5


async def test_too_many_tokens_to_ever_fit_are_the_callers_fault(embed: EmbedEngine) -> None:
    with pytest.raises(InvalidInput, match="split it"):
        await embed.embed(["gravity is a force " * 100] * 100)


async def test_a_full_queue_refuses_with_a_time_to_come_back(embed: EmbedEngine) -> None:
    text = "gravity is a force " * 100
    tasks = [asyncio.ensure_future(embed.embed([f"{i} {text}"] * 30)) for i in range(10)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    assert refused
    assert len(refused) < 10
    assert all(error.retry_after_s > 0 for error in refused)


async def test_one_bad_text_does_not_touch_its_neighbours(embed: EmbedEngine) -> None:
    texts = ["gravity", "\udcff", "force " * 400, "bodies"]
    alone = [(await embed.embed([text])).items[0] for text in ("gravity", "bodies")]
    items = (await embed.embed(texts, truncation=Truncation.ERROR)).items
    errors = [item.error.field for item in items if isinstance(item, Failure) and isinstance(item.error, InvalidInput)]
    assert errors == ["texts[1]", "texts[2]"]
    assert np.abs(vectors([items[0], items[3]]) - vectors(alone)).max() <= 1e-6


async def test_a_result_that_is_not_finite_fails_alone(
    embed: EmbedEngine, rerank: RerankEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Cpu.launch

    def poisoned(self: Cpu, packed: Packed):  # type: ignore[no-untyped-def]
        rows = launch(self, packed)()
        rows[1] = np.nan
        return lambda: rows

    monkeypatch.setattr(Cpu, "launch", poisoned)
    for items in ((await embed.embed(["a", "b", "c"])).items, (await rerank.rerank("q", ["a", "b", "c"])).items):
        assert [isinstance(item, Failure) for item in items] == [False, True, False]
        assert isinstance(items[1], Failure)
        assert isinstance(items[1].error, NonFinite)


@pytest.mark.parametrize("max_tokens", [0, -1, LIMIT + 1])
async def test_token_limits_out_of_range(embed: EmbedEngine, max_tokens: int) -> None:
    with pytest.raises(InvalidInput) as refused:
        await embed.embed(["a"], max_tokens=max_tokens)
    assert refused.value.field == "max_tokens"


async def test_a_lower_limit_per_request(embed: EmbedEngine) -> None:
    (item,) = (await embed.embed(["gravity is a force"], max_tokens=3)).items
    assert isinstance(item, EmbedItem)
    assert (item.tokens, item.truncated) == (3, True)


async def test_a_deadline_in_the_past_costs_nothing(embed: EmbedEngine) -> None:
    reports: list[BatchReport] = []
    embed.on_batch = reports.append
    with pytest.raises(DeadlineTooShort):
        await embed.embed(["a"], deadline=asyncio.get_running_loop().time() - 1)
    assert reports == []
    assert (await embed.embed(["a"], deadline=asyncio.get_running_loop().time() + 30)).items
    assert len(reports) == 1


async def test_reports_name_every_request_and_count_unique_tokens(options: EngineSettings) -> None:
    engine = RerankEngine.load(options)
    reports: list[BatchReport] = []
    engine.on_batch = reports.append
    engine.start()
    await asyncio.gather(
        engine.rerank("gravity", ["a", "b"], context="one"), engine.rerank("gravity", ["a", "c"], context="two")
    )
    engine.close()
    (report,) = reports
    assert report.requests == ("one", "two")
    assert report.segments == 4
    assert report.tokens < 0.5 * report.requested_tokens


async def test_cancelled_requests_leave_the_queue(embed: EmbedEngine) -> None:
    reports: list[BatchReport] = []
    embed.on_batch = reports.append
    first = asyncio.ensure_future(embed.embed(["gravity " * 50], context="first"))
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(embed.embed([f"{i} " * 200], context="cancelled")) for i in range(20)]
    await asyncio.sleep(0)
    for task in others:
        task.cancel()
    await asyncio.gather(first, *others, return_exceptions=True)
    assert all(task.cancelled() for task in others)
    assert embed.stats().queued_tokens == 0
    await embed.embed(["last"], context="last")
    assert [report.requests for report in reports] == [("first",), ("last",)]


async def test_drain_and_close(embed: EmbedEngine) -> None:
    task = asyncio.ensure_future(embed.embed(["gravity"] * 50))
    await asyncio.sleep(0)
    await embed.drain()
    assert len((await task).items) == 50
    with pytest.raises(Draining):
        await embed.embed(["a"])
    embed.close()
    embed.close()


async def test_close_fails_what_waits(embed: EmbedEngine) -> None:
    tasks = [asyncio.ensure_future(embed.embed([f"{i} " * 200])) for i in range(20)]
    await asyncio.sleep(0)
    embed.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, Draining) for outcome in outcomes)


async def test_a_broken_device_is_reported_once_and_refuses_from_then_on(
    embed: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Cpu, packed: Packed) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    broken: list[ModelBroken] = []
    embed.on_broken = broken.append
    monkeypatch.setattr(Cpu, "launch", gone)
    outcomes = await asyncio.gather(*(embed.embed([f"{i} " * 150]) for i in range(8)), return_exceptions=True)
    assert all(isinstance(outcome, ModelBroken) for outcome in outcomes)
    assert len(broken) == 1
    with pytest.raises(ModelBroken):
        await embed.embed(["a"])


async def test_not_started_says_so(options: EngineSettings) -> None:
    engine = EmbedEngine.load(options)
    with pytest.raises(RuntimeError, match="not been started"):
        await engine.embed(["a"])
    engine.close()


def test_a_model_that_disagrees_with_itself_does_not_start(
    options: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Cpu.launch

    def leaky(self: Cpu, packed: Packed):  # type: ignore[no-untyped-def]
        """Texts see their neighbours, as they would with positions or masks gone wrong."""
        rows = launch(self, packed)()
        return lambda: rows + 1e-3 * (len(rows) - 1)

    monkeypatch.setattr(Cpu, "launch", leaky)
    with pytest.raises(CheckpointError, match="self-check failed: a text alone"):
        EmbedEngine.load(options)


async def test_timings_and_speed_are_measured(embed: EmbedEngine) -> None:
    result = await embed.embed(["gravity"] * 10, input_type=InputType.QUERY)
    assert result.timings.tokenize_s > 0
    assert result.timings.forward_s > 0
    assert result.timings.queue_s >= 0
    stats = embed.stats()
    assert stats.tokens_per_second > 0
    assert (stats.queued_tokens, stats.inflight_tokens, stats.queue_limit_tokens) == (0, 0, 20_000)
