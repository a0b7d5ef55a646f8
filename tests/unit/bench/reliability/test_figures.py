import math
from itertools import pairwise

import pytest

from bench.reliability import figures
from bench.reliability.load import arrivals
from bench.reliability.outcomes import Outcome


def answered(at: float, latency: float = 0.1, code: str = "OK", reason: str = "") -> Outcome:
    return Outcome(at, latency, 0.0, code, reason)


def steady(rate: float, begun: float, ended: float) -> list[Outcome]:
    return [answered(begun + number / rate, 0.0) for number in range(int(rate * (ended - begun)))]


def test_capacity_counts_what_ends_after_the_first_batch() -> None:
    batches = [answered(begun, 0.5) for begun in (0.0, 0.5, 1.0, 1.5, 2.0) for _ in range(10)]
    # 20 answers a second in batches of ten; the calls that begin last end after the load.
    assert figures.capacity(batches, 0.4) == pytest.approx(20)
    assert figures.capacity(batches[:20], 2.0) == 20  # nothing ends after that: 20 answers in the first second
    assert figures.capacity([], 0.0) == 0


def test_goodput_counts_answers_in_time_when_they_arrive() -> None:
    calls = [answered(0.0, 0.9), answered(0.5, 1.2), answered(0.8, 0.4), answered(0.2, 0.1, "UNAVAILABLE")]
    assert figures.goodput(calls, 0.0, 1.0, deadline=1.0) == 1
    assert figures.goodput(calls, 0.0, 2.0, deadline=1.0) == 1
    assert figures.goodput(calls, 0.0, 2.0, deadline=2.0) == 1.5


def test_success_is_of_the_calls_of_a_period() -> None:
    calls = [answered(0.0), answered(1.0, code="CANCELLED"), answered(2.0)]
    assert figures.success(calls) == pytest.approx(2 / 3)
    assert figures.success(calls, 1.5) == 1
    assert figures.success(calls, 3.0) is None


def test_what_was_before_had_ended() -> None:
    assert figures.before([answered(0.0, 0.3), answered(0.9, 5.0), answered(2.0)], 1.0) == [0.3]


def test_ends_that_the_contract_does_not_name_are_unexplained() -> None:
    known = [
        answered(0.0), answered(0.0, code="UNAVAILABLE"), answered(0.0, code="DEADLINE_EXCEEDED"),
        answered(0.0, code="RESOURCE_EXHAUSTED", reason="OVERLOADED"),
    ]  # fmt: skip
    unknown = [answered(0.0, code=code) for code in ("CANCELLED", "INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED")]
    assert figures.unexplained(known) == 0
    assert figures.unexplained(known + unknown) == 4
    assert figures.codes(known)["RESOURCE_EXHAUSTED OVERLOADED"] == 1


def test_a_rate_is_stable_from_its_last_low_window_on() -> None:
    dip = steady(50, 0, 2) + steady(100, 2, 4) + steady(50, 4, 5) + steady(100, 5, 10)
    reached, stable = figures.reached_and_stable_after(dip, 1.0, 10.0, 90.0)
    assert reached == pytest.approx(0.8, abs=0.1)
    assert stable == pytest.approx(3.8, abs=0.1)
    assert figures.reached_and_stable_after(steady(100, 0, 10), 2.0, 10.0, 90.0) == (0, 0)
    assert figures.reached_and_stable_after(steady(100, 0, 10), 2.0, 10.0, 110.0) == (None, None)
    assert figures.reached_and_stable_after([], 2.0, 2.5, 1.0) == (None, None)


def test_trouble_ends_with_the_last_call_that_fails_or_is_slow() -> None:
    calls = [answered(5.0), answered(6.0, 0.9), answered(7.0, code="UNAVAILABLE"), answered(8.0, 0.2)]
    assert figures.trouble_until(calls, 5.0, slow=0.5) == 2
    assert figures.trouble_until(calls, 5.0, slow=0.1) == 3
    assert figures.trouble_until(calls, 7.5, slow=0.5) == 0


def test_slope_is_growth_per_hour_with_its_error() -> None:
    moments = [float(second) for second in range(0, 3600, 60)]
    growth, error = figures.slope(moments, [100 + moment / 360 for moment in moments])
    assert growth == pytest.approx(10)
    assert error == pytest.approx(0, abs=1e-9)
    noisy = [100 + (-1) ** number for number in range(60)]
    growth, error = figures.slope(moments, noisy)
    assert abs(growth) < 2 * error
    assert figures.slope(moments, [10.1] * 60) == (0.0, 0.0)
    assert figures.slope([0.0, 1.0], [0.0, 1.0])[1] == math.inf


def test_arrivals_are_a_poisson_process_of_the_given_rates() -> None:
    moments = arrivals([(100.0, 20.0), (100.0, 5.0)], seed=3)
    assert moments == sorted(moments)
    assert 0 <= moments[0] <= moments[-1] < 200
    first = [moment for moment in moments if moment < 100]
    # A Poisson variable of mean 2000 has a standard deviation of 45, one of mean 500 of 22.
    assert abs(len(first) - 2000) < 225
    assert abs(len(moments) - len(first) - 500) < 110
    gaps = [later - earlier for earlier, later in pairwise(first)]
    assert max(gaps) > 4 * sum(gaps) / len(gaps)  # not evenly spaced
    assert moments == arrivals([(100.0, 20.0), (100.0, 5.0)], seed=3)


def test_batches_are_no_fluctuation_of_the_rate() -> None:
    """100 answers a second in batches of 17: a window holds the ends of five or of six."""
    batches = [answered(0.17 * number, 0.0) for number in range(60) for _ in range(17)]
    assert figures.reached_and_stable_after(batches, 1.0, 10.0, 98.0) == (0, 0)
