"""A bucket against a clock of the test's own."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.callers.token_bucket import TokenBucket


def test_a_burst_then_the_rate() -> None:
    bucket = TokenBucket(10, 100, 0.0)
    assert bucket.wait_s(100, 0.0) == 0
    bucket.take(100, 0.0)
    assert bucket.wait_s(25, 0.0) == pytest.approx(2.5)
    assert bucket.wait_s(25, 2.0) == pytest.approx(0.5)
    assert bucket.wait_s(25, 2.5) == 0


def test_more_than_the_burst_needs_a_full_bucket_and_is_paid_for_later() -> None:
    bucket = TokenBucket(10, 100, 0.0)
    assert bucket.wait_s(250, 0.0) == 0
    bucket.take(250, 0.0)
    assert bucket.wait_s(1, 15.0) == pytest.approx(0.1)
    assert bucket.wait_s(250, 15.0) == pytest.approx(10)


def test_what_is_given_back_fills_it_and_no_more() -> None:
    bucket = TokenBucket(10, 100, 0.0)
    bucket.take(50, 0.0)
    assert not bucket.full(0.0)
    bucket.take(-500, 0.0)
    assert bucket.full(0.0)
    assert bucket.wait_s(100, 0.0) == 0
    bucket.take(100, 0.0)
    assert bucket.wait_s(1, 0.0) > 0


def test_another_rate_holds_from_then_on() -> None:
    bucket = TokenBucket(10, 100, 0.0)
    bucket.adjust(1000, 20, 5.0)
    bucket.take(20, 5.0)
    assert bucket.wait_s(20, 5.0) == pytest.approx(0.02)


@settings(deadline=None)  # the machine may be slow
@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), max_size=50))
def test_never_more_than_rate_and_burst(calls: list[tuple[float, int]]) -> None:
    bucket, now, taken = TokenBucket(10, 50, 0.0), 0.0, 0
    for pause, tokens in calls:
        now += pause
        if bucket.wait_s(tokens, now) == 0:
            bucket.take(tokens, now)
            taken += tokens
        assert taken <= 50 + 10 * now + 1e-6


@pytest.mark.parametrize("error", [0.5, 1.0, 2.0], ids=["too low", "right", "too high"])
def test_what_was_used_keeps_to_the_rate_within_a_twentieth_whatever_the_estimate(error: float) -> None:
    """Ten seconds of a caller that always has more to send, four calls at a time, each of which takes 20 ms."""
    rate, burst, numbers = 10_000.0, 1_000.0, random.Random(1)
    bucket, now, used = TokenBucket(rate, burst, 0.0), 0.0, 0
    ends: list[tuple[float, float, int]] = []
    while now < 10:
        tokens = numbers.randint(20, 200)
        estimate = error * tokens
        waits = [bucket.wait_s(estimate, now)] if len(ends) < 4 else []
        if waits == [0]:
            bucket.take(estimate, now)
            ends.append((now + 0.02, estimate, tokens))
            continue
        now = min([now + wait for wait in waits] + [end for end, _, _ in ends])
        for end in [end for end in ends if end[0] <= now]:
            ends.remove(end)
            bucket.take(end[2] - end[1], now)
            used += end[2]
    assert used == pytest.approx(burst + 10 * rate, rel=0.05)
