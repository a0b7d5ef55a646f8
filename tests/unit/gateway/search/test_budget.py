"""How a search's time is divided over its stages."""

import asyncio

import pytest

from gateway.search.budget import Budget, BudgetSettings

SETTINGS = BudgetSettings(timeout_s=20.0, embed_share=0.5, retrieve_share=0.25)


async def test_the_last_stage_has_all_but_the_time_for_the_way_back() -> None:
    now = asyncio.get_running_loop().time()
    assert Budget(now + 100, SETTINGS).rerank() == now + 100 - 0.25
    # Of a short deadline a twentieth, of a very short one at least 10 ms.
    for seconds, reserved in ((2.0, 0.1), (0.1, 0.01), (-5.0, 0.01)):
        now = asyncio.get_running_loop().time()
        assert now + seconds - Budget(now + seconds, SETTINGS).rerank() == pytest.approx(reserved, rel=0.2)


async def test_a_search_without_a_deadline_has_the_settings_timeout() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    end = Budget(None, SETTINGS).rerank()
    assert before + 19.75 <= end <= loop.time() + 19.75


async def test_each_stage_has_its_share_of_what_is_left() -> None:
    loop = asyncio.get_running_loop()
    budget = Budget(loop.time() + 100, SETTINGS)
    before = loop.time()
    deadline, seconds = budget.embed(), budget.retrieve_s()
    after = loop.time()
    assert before + 0.5 * (budget.rerank() - after) <= deadline <= after + 0.5 * (budget.rerank() - before)
    assert 0.25 * (budget.rerank() - after) <= seconds <= 0.25 * (budget.rerank() - before)


async def test_past_the_deadline_nothing_is_left() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    budget = Budget(before - 1, SETTINGS)
    assert budget.retrieve_s() == 0.0
    assert before <= budget.embed() <= loop.time()
    assert budget.rerank() < before
