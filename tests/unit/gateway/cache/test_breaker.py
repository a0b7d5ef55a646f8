"""The breaker: closed, open, half-open."""

from gateway.cache.breaker import Breaker, State


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(failures=3, open_s=10, clock=clock)
    for _ in range(3):
        assert breaker.allow()
        breaker.failure()
    return breaker, clock


def test_failures_in_a_row_open_it() -> None:
    breaker, _ = opened()
    assert breaker.state is State.OPEN
    assert not breaker.allow()


def test_a_success_in_between_starts_the_count_again() -> None:
    breaker = Breaker(failures=2, open_s=10, clock=Clock())
    for _ in range(5):
        breaker.failure()
        breaker.success()
    assert breaker.state is State.CLOSED
    assert breaker.allow()


def state(breaker: Breaker) -> State:
    return breaker.state


def test_after_the_rest_one_probe_is_let_through() -> None:
    breaker, clock = opened()
    clock.now = 9.9
    assert not breaker.allow()
    clock.now = 10
    assert breaker.allow()
    assert state(breaker) is State.HALF_OPEN
    assert not breaker.allow()
    breaker.success()
    assert state(breaker) is State.CLOSED
    assert breaker.allow()


def test_a_probe_that_fails_opens_it_again() -> None:
    breaker, clock = opened()
    clock.now = 10
    assert breaker.allow()
    breaker.failure()
    assert breaker.state is State.OPEN
    clock.now = 19
    assert not breaker.allow()
    clock.now = 20
    assert breaker.allow()


def test_a_probe_that_never_reports_does_not_block_for_ever() -> None:
    breaker, clock = opened()
    clock.now = 10
    assert breaker.allow()
    clock.now = 20
    assert breaker.allow()
