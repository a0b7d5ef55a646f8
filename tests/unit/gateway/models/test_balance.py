"""Which replica gets the next call. Simulated replicas answer on a simulated clock."""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable

import pytest

from gateway.models.balance import Balance, Connection, Load, Sent, newcomer


class Replica:
    """Works on one call after the other, `speed` tokens a second and a constant for each."""

    def __init__(self, name: str, speed: float = 10_000.0, each_s: float = 0.005) -> None:
        self.name, self.speed, self.each_s = name, speed, each_s
        self.load = Load()
        self.load.connection = Connection.READY
        self.free_at = 0.0

    def done_at(self, work: int, now: float) -> float:
        self.free_at = max(now, self.free_at) + self.each_s + work / self.speed
        return self.free_at


class Pool:
    """Replicas, and the calls in flight."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = list(replicas)
        self.balance = Balance()
        self.now = 0.0
        self.latencies: list[float] = []
        self.counts: Counter[str] = Counter()
        self.flying: list[tuple[float, int, Replica, Sent]] = []
        self._number = itertools.count()

    def call(self, work: int = 100) -> Replica:
        replica = self.balance.choose(self.replicas, work, self.now)
        self.counts[replica.name] += 1
        sent = self.balance.sent(replica.load, work, self.now)
        heapq.heappush(self.flying, (replica.done_at(work, self.now), next(self._number), replica, sent))
        return replica

    def pass_until(self, then: float) -> None:
        while self.flying and self.flying[0][0] <= then:
            self.now, _, replica, sent = heapq.heappop(self.flying)
            self.latencies.append(self.now - sent.at)
            self.balance.answered(replica.load, sent, self.now)
        self.now = then

    def run(self, seconds: float, every_s: float, work: Callable[[int], int] = lambda number: 100) -> None:
        """Calls at a fixed rate."""
        self.counts.clear()
        self.latencies.clear()
        began = self.now
        for number in range(round(seconds / every_s)):
            self.pass_until(began + number * every_s)
            self.call(work(number))

    def p99(self) -> float:
        return sorted(self.latencies)[len(self.latencies) * 99 // 100]


def three(slow: float = 1.0) -> Pool:
    return Pool(Replica("a"), Replica("b"), Replica("c", 10_000.0 / slow, 0.005 * slow))


def test_one_call_after_the_other_goes_to_each_in_turn() -> None:
    pool = three()
    pool.run(3.0, 0.1)
    assert set(pool.counts.values()) == {10}


def test_the_one_with_the_least_work_gets_the_next_call() -> None:
    pool = three()
    pool.call(5000)
    pool.call(5000)
    assert len(pool.counts) == 2
    third = pool.call(10)
    assert pool.counts[third.name] == 1
    for _ in range(50):
        assert pool.call(10) is third  # until its small calls are as much work as a large one


def test_small_calls_count_more_than_their_tokens() -> None:
    """Two replicas, one with many small calls and one with a single call of as many tokens."""
    pool = Pool(Replica("a"), Replica("b"))
    many, one = pool.replicas
    for _ in range(20):
        pool.balance.sent(many.load, 10, 0.0)
    pool.balance.sent(one.load, 200, 0.0)
    assert all(pool.balance.choose(pool.replicas, 10, 0.0) is one for _ in range(4))


@pytest.mark.parametrize("every_s", [0.05, 0.01, 0.0085])
def test_a_slow_replica_does_not_make_the_99th_percentile(every_s: float) -> None:
    equal, unequal = three(), three(slow=10)
    for pool in (equal, unequal):
        pool.run(10, every_s)  # what one of them is like is found out
        pool.run(60, every_s)
    assert unequal.counts["c"] < 0.01 * unequal.counts.total()
    assert unequal.p99() <= 1.5 * max(equal.p99(), 0.015)


def test_a_slow_replica_is_found_out_by_its_first_calls() -> None:
    pool = three()
    pool.run(5, 0.01)
    pool.replicas[2].speed, pool.replicas[2].each_s = 1000, 0.05
    pool.run(2, 0.01)
    assert pool.counts["c"] <= 5


def test_a_slow_replica_works_in_proportion_to_its_speed_when_all_are_needed() -> None:
    pool = three(slow=10)
    while pool.now < 60:
        while len(pool.flying) < 40:
            pool.call()
        pool.pass_until(pool.flying[0][0])
    assert 0.02 < pool.counts["c"] / pool.counts.total() < 0.1
    assert pool.counts["a"] == pytest.approx(pool.counts["b"], rel=0.1)


def test_one_accident_is_not_held_against_a_replica() -> None:
    pool = three()
    pool.run(5, 0.01)
    pool.pass_until(pool.now + 1)
    load = pool.replicas[2].load
    sent = pool.balance.sent(load, 100, pool.now - 10.0)
    pool.balance.answered(load, sent, pool.now)
    pool.run(3, 0.01)
    assert pool.counts["c"] > 0.25 * pool.counts.total()


def test_mixed_sizes_are_no_slowness() -> None:
    """Large calls take long everywhere; who happens to have them is not slow."""
    pool = three()
    pool.run(60, 0.08, lambda number: 2000 if number % 7 == 0 else 50)
    shares = [count / pool.counts.total() for count in pool.counts.values()]
    assert min(shares) > 0.25


def test_one_that_has_been_slow_is_tried_again_and_by_one_call_at_a_time() -> None:
    pool = three(slow=10)
    pool.run(10, 0.01)
    slow = pool.replicas[2]
    at_once, chosen = 0, 0
    for _ in range(12_000):
        pool.pass_until(pool.now + 0.01)
        chosen += pool.call() is slow
        at_once = max(at_once, len(slow.load.unanswered))
    assert 1 <= chosen <= 60
    assert at_once <= 2
    slow.speed, slow.each_s = 10_000.0, 0.005
    pool.run(60, 0.01)
    pool.run(10, 0.01)
    assert pool.counts["c"] > 0.25 * pool.counts.total()


def test_one_that_stops_answering_gets_no_calls_soon() -> None:
    pool = three()
    pool.run(5, 0.01)
    pool.replicas[2].free_at = float("inf")
    pool.run(0.2, 0.01)
    in_the_beginning = pool.counts["c"]
    pool.run(5, 0.01)
    assert in_the_beginning <= 10
    assert pool.counts["c"] == 0


def test_a_long_call_does_not_make_a_replica_slow_that_answers_others() -> None:
    pool = Pool(Replica("a"))
    pool.run(2, 0.1)
    load = pool.replicas[0].load
    pool.balance.sent(load, 100, pool.now)
    for _ in range(20):
        sent = pool.balance.sent(load, 100, pool.now)
        pool.now += 0.02
        pool.balance.answered(load, sent, pool.now)
    assert load.slowness(pool.now) < 2
    assert load.slowness(pool.now + 0.5) > 10


def test_answers_that_are_no_results_do_not_hide_that_it_is_stuck() -> None:
    pool = three()
    pool.run(5, 0.01)
    stuck = pool.replicas[2].load
    pool.balance.sent(stuck, 100, pool.now)
    for _ in range(10):
        pool.now += 0.1
        stuck.heard()
        pool.balance.failed(stuck, pool.balance.sent(stuck, 100, pool.now), pool.now, 0.0)
    assert stuck.slowness(pool.now) > 10


def test_a_new_replica_is_used_at_once_and_not_flooded() -> None:
    pool = Pool(Replica("a"), Replica("b"))
    pool.run(5, 0.01)
    pool.replicas.append(Replica("new"))
    pool.replicas[2].load = newcomer([replica.load for replica in pool.replicas[:2]], pool.now)
    pool.replicas[2].load.connection = Connection.READY
    pool.run(0.3, 0.01)
    assert 5 <= pool.counts["new"] <= 15


def test_a_newcomer_is_as_slow_as_the_median() -> None:
    loads = [Load(slowness, 0.0) for slowness in (1.0, 50.0, 2.0)]
    assert newcomer(loads, 0.0).slowness(0.0) == pytest.approx(2.0)


def test_a_newcomer_to_nobody_is_as_usual() -> None:
    assert newcomer([], 0.0).slowness(0.0) == 1.0


def ranked(**states: Callable[[Load], None]) -> list[Replica]:
    replicas = [Replica(name) for name in states]
    for replica, change in zip(replicas, states.values(), strict=True):
        change(replica.load)
    return replicas


def _silent(load: Load) -> None:
    load.silent = True


def _paused(load: Load) -> None:
    load.paused_until = 10.0


def _connecting(load: Load) -> None:
    load.connection = Connection.CONNECTING


def _failing(load: Load) -> None:
    load.connection = Connection.FAILING


def _busy(load: Load) -> None:
    load.work = 100_000


def test_state_decides_before_load_and_the_worst_is_still_used() -> None:
    replicas = ranked(failing=_failing, silent=_silent, connecting=_connecting, paused=_paused, busy=_busy)
    balance = Balance()
    order = []
    while replicas:
        chosen = balance.choose(replicas, 10, 1.0)
        order.append(chosen.name)
        replicas.remove(chosen)
    assert order == ["busy", "paused", "connecting", "silent", "failing"]


def test_the_one_usable_replica_of_a_large_pool_is_found() -> None:
    pool = Pool(*(Replica(str(number)) for number in range(50)))
    for replica in pool.replicas:
        replica.load.connection = Connection.FAILING
    pool.replicas[40].load.connection = Connection.READY
    for _ in range(100):
        assert pool.call() is pool.replicas[40]


def test_a_large_pool_shares_the_work_evenly() -> None:
    pool = Pool(*(Replica(str(number)) for number in range(50)))
    pool.run(20, 0.0005)
    assert max(pool.counts.values()) < 1.2 * min(pool.counts.values())


def test_a_pause_ends_and_is_no_slowness() -> None:
    pool = Pool(Replica("a"), Replica("b"))
    refusing = pool.replicas[0].load
    pool.balance.failed(refusing, pool.balance.sent(refusing, 100, 0.0), 0.001, 0.2)
    assert {pool.balance.choose(pool.replicas, 10, 0.1).name for _ in range(10)} == {"b"}
    assert {pool.balance.choose(pool.replicas, 10, 0.3).name for _ in range(10)} == {"a", "b"}


def test_a_failure_at_once_does_not_make_a_replica_look_fast() -> None:
    pool = three()
    pool.run(5, 0.01)
    load = pool.replicas[0].load
    before = load.slowness(pool.now)
    for _ in range(20):
        pool.balance.failed(load, pool.balance.sent(load, 100, pool.now), pool.now)
    assert load.slowness(pool.now) == pytest.approx(before)


def test_calls_that_were_given_up_late_make_it_slow() -> None:
    pool = three()
    pool.run(5, 0.01)
    load = pool.replicas[0].load
    for _ in range(2):
        sent = pool.balance.sent(load, 100, pool.now)
        pool.now += 1.0
        pool.balance.failed(load, sent, pool.now)
    assert load.slowness(pool.now) > 10


def test_questions_go_to_all_in_turn_whatever_their_load() -> None:
    replicas = ranked(a=_busy, b=lambda load: None, c=_silent)
    balance = Balance()
    assert Counter(balance.in_turn(replicas, 1.0).name for _ in range(10)) == {"a": 5, "b": 5}


def test_an_answer_from_memory_says_nothing_about_speed() -> None:
    pool = three()
    pool.run(5, 0.01)
    load = pool.replicas[0].load
    pool.pass_until(pool.now + 1)
    pool.balance.sent(load, 100, pool.now)
    before = load.slowness(pool.now)
    sent = pool.balance.sent(load, 0, pool.now)
    pool.balance.answered(load, sent, pool.now + 9)
    assert load.slowness(pool.now) == pytest.approx(before)
