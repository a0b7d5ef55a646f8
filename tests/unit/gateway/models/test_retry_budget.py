"""How many calls may be sent a second time."""

from gateway.models.retry_budget import Percentile95, RetryBudget


def spent(budget: RetryBudget, now: float, most: int = 10_000) -> int:
    count = 0
    while count < most and budget.spend(now):
        count += 1
    return count


def test_the_reserve_covers_a_burst_and_no_more() -> None:
    assert spent(RetryBudget(0.1, 100, 0.0), 0.0) == 100


def test_a_pool_that_refuses_everything_gets_a_tenth_more_and_the_reserve() -> None:
    budget = RetryBudget(0.1, 100, 0.0)
    retries = 0
    for number in range(20_000):
        now = number / 2000
        budget.earn(now)
        retries += budget.spend(now)
    assert 0.09 * 20_000 <= retries <= 0.1 * 20_000 + 100 + 1 * 10


def test_what_was_earned_is_lost_with_time_and_the_reserve_comes_back() -> None:
    budget = RetryBudget(0.1, 10, 0.0)
    for _ in range(10_000):
        budget.earn(0.0)
    assert spent(budget, 0.0) == 1010
    for _ in range(10_000):
        budget.earn(0.0)
    assert spent(budget, 100.0) == 10


def test_a_percentile_of_the_latest_values() -> None:
    percentile = Percentile95()
    for value in range(19):
        percentile.add(float(value))
    assert percentile.value is None
    for value in range(19, 100):
        percentile.add(float(value))
    assert percentile.value == 95.0
    for _ in range(200):
        percentile.add(1.0)
    assert percentile.value == 1.0
