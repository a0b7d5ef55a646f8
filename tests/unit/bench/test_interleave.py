import pytest

from bench.interleave import interleave, rate


def test_subjects_take_turns_and_the_order_turns() -> None:
    done: list[str] = []
    announced: list[str] = []
    runs = {name: (lambda name=name: done.append(name)) for name in "abc"}
    seconds = interleave(runs, 4, announced.append)
    assert "".join(done) == "abc" + "bca" + "cab" + "abc"
    assert announced == done
    assert list(seconds) == ["a", "b", "c"]
    assert all(len(times) == 4 and min(times) >= 0 for times in seconds.values())


def test_rate_is_the_median_with_least_and_greatest() -> None:
    value, (least, greatest) = rate(100.0, [4.0, 2.0, 10.0])
    assert value == pytest.approx(25.0)
    assert least == pytest.approx(10.0)
    assert greatest == pytest.approx(50.0)
