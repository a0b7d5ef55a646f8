"""The estimate follows the machine, whatever the sizes of the batches that it sees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.throughput import Throughput

FULL = 2000


def truth(tokens: int, speed: float = 1.0) -> float:
    """Seconds of a batch: a fixed part, and one per token."""
    return (0.004 + tokens / 26_590) / speed


def started(speed: float) -> Throughput:
    """What start-up measures on a machine of that speed."""
    return Throughput({size: size / truth(size, speed) for size in (6, 24, 256, FULL)}, FULL)


@pytest.mark.parametrize("sizes", [[300], [24, 300], [12, 90, 700]])
@pytest.mark.parametrize(("then", "now"), [(0.1, 1.0), (1.0, 0.1), (0.3, 1.0)])
def test_batches_of_a_few_hundred_tokens_tell_the_speed_of_full_ones(sizes: list[int], then: float, now: float) -> None:
    throughput = started(then)
    for i in range(60):
        size = sizes[i % len(sizes)]
        throughput.measured(size, truth(size, now))
    for size in (FULL, *sizes):
        assert throughput.rate(size) == pytest.approx(size / truth(size, now), rel=0.35)


def test_what_slows_small_batches_down_is_not_held_against_full_ones() -> None:
    throughput = started(1.0)
    for _ in range(60):
        throughput.measured(12, 3 * truth(12))
    assert throughput.rate(12) == pytest.approx(12 / truth(12) / 3, rel=0.05)
    assert throughput.rate() > 0.8 * FULL / truth(FULL)


def test_the_start_is_believed() -> None:
    for size in (6, 24, 100, 256, 1000, FULL):
        assert started(1.0).rate(size) == pytest.approx(size / truth(size))
    assert Throughput({FULL: 100.0}, FULL).rate(10) == pytest.approx(100.0)
    assert Throughput({10: 100.0, FULL: 50.0}, FULL).rate() == pytest.approx(50.0)  # no fixed time is less than none


def test_one_odd_batch_changes_little() -> None:
    throughput = started(1.0)
    before = throughput.rate()
    throughput.measured(100, truth(100) * 1000)
    assert throughput.rate() > 0.7 * before
    for _ in range(10):
        throughput.measured(100, truth(100))
    throughput.measured(100, truth(100) / 1000)
    assert throughput.rate() < 2 * before


def test_one_odd_long_text_changes_little() -> None:
    """Nothing but long texts corrects their estimate, and it serves to refuse them."""
    throughput = started(1.0)
    before = throughput.rate(4 * FULL)
    throughput.measured(4 * FULL, truth(4 * FULL) * 1000)
    assert throughput.rate(4 * FULL) > 0.7 * before
    for _ in range(20):
        throughput.measured(4 * FULL, 3 * truth(4 * FULL))
    assert throughput.rate(4 * FULL) == pytest.approx(4 * FULL / truth(4 * FULL) / 3, rel=0.1)
    assert throughput.rate() == pytest.approx(FULL / truth(FULL))


def test_full_batches_settle_their_own_estimate() -> None:
    throughput = started(1.0)
    for _ in range(100):
        throughput.measured(12, truth(12, 0.5))  # small ones suffer from something that full ones do not
        throughput.measured(FULL, truth(FULL))
    assert throughput.rate() == pytest.approx(FULL / truth(FULL), rel=0.3)


@given(st.lists(st.tuples(st.integers(1, 4000), st.floats(1e-4, 10)), max_size=50), st.integers(1, 4000))
def test_an_estimate_lies_within_what_was_measured(batches: list[tuple[int, float]], tokens: int) -> None:
    throughput = started(1.0)
    for size, seconds in batches:
        throughput.measured(size, seconds)
    assert throughput.rate(tokens) > 0
    assert throughput.seconds(tokens) > 0


@given(st.floats(0, 2), st.integers(1, FULL))
def test_a_batch_of_so_many_tokens_is_done_in_time(seconds: float, most: int) -> None:
    throughput = started(1.0)
    tokens = throughput.tokens(seconds, most)
    assert 0 <= tokens <= most
    assert throughput.seconds(tokens) <= seconds
    assert throughput.tokens(2 * seconds, most) >= tokens
