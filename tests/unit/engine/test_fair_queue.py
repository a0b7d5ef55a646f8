"""Order and shares of the queue, with any requests of any callers."""

from collections import defaultdict, deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.fair_queue import FairQueue


@dataclass(eq=False)
class Job:
    caller: str
    queued: int
    number: int = 0


def queue_of(*jobs: tuple[str, int], credit: int = 0) -> FairQueue[Job]:
    queue: FairQueue[Job] = FairQueue(credit)
    for number, (caller, tokens) in enumerate(jobs):
        queue.append(Job(caller, tokens, number))
    return queue


def serve(queue: FairQueue[Job], most: int) -> tuple[str, int]:
    """The front, as far as `most` tokens go."""
    job = queue.front()
    assert job is not None
    tokens = min(most, job.queued)
    job.queued -= tokens
    if not job.queued:
        assert queue.popleft() is job
    queue.served(job.caller, tokens)
    return job.caller, tokens


ANY = settings(deadline=None)  # the machine may be slow
CALLERS = st.sampled_from("abc")
JOBS = st.lists(st.tuples(CALLERS, st.integers(1, 50)), max_size=30)


@ANY
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 20))
def test_one_caller_has_an_ordinary_queue(sizes: list[int], most: int) -> None:
    queue = queue_of(*[("", size) for size in sizes])
    assert [job.number for job in queue] == list(range(len(sizes)))
    order = []
    while job := queue.front():
        order.append(job.number)
        serve(queue, most)
    assert order == sorted(order)
    assert set(order) == set(range(len(sizes)))


@ANY
@given(JOBS, st.integers(1, 20))
def test_a_caller_is_served_in_its_own_order(jobs: list[tuple[str, int]], most: int) -> None:
    queue = queue_of(*jobs)
    seen: defaultdict[str, list[int]] = defaultdict(list)
    while job := queue.front():
        seen[job.caller].append(job.number)
        serve(queue, most)
    assert all(order == sorted(order) for order in seen.values())
    assert {number for order in seen.values() for number in order} == set(range(len(jobs)))
    assert (len(queue), queue.tokens) == (0, 0)


@ANY
@given(JOBS)
def test_it_iterates_in_the_order_of_service(jobs: list[tuple[str, int]]) -> None:
    queue = queue_of(*jobs)
    told = list(queue)
    served = []
    while job := queue.front():
        served.append(job)
        serve(queue, job.queued)
    assert told == served


@ANY
@given(JOBS, st.integers(1, 20), st.integers(0, 100))
def test_callers_that_wait_are_served_the_same_to_within_credit_and_step(
    jobs: list[tuple[str, int]], most: int, credit: int
) -> None:
    queue = queue_of(*jobs, credit=credit)
    served: defaultdict[str, int] = defaultdict(int)
    waiting = {caller for caller, _ in jobs}
    while queue.tokens:
        caller, tokens = serve(queue, most)
        served[caller] += tokens
        waiting &= {job.caller for job in queue}
        for one in waiting:
            for other in waiting:
                assert abs(served[one] - served[other]) <= most + credit


@ANY
@given(JOBS, st.integers(1, 20), CALLERS, st.integers(1, 50), st.integers(0, 40), st.integers(0, 50))
def test_no_more_is_served_before_a_request_than_was_told(
    jobs: list[tuple[str, int]], most: int, caller: str, tokens: int, steps: int, credit: int
) -> None:
    queue = queue_of(*jobs, credit=credit)
    for _ in range(steps):
        if queue.tokens:
            serve(queue, most)
    told = queue.ahead(caller, tokens)
    last = Job(caller, tokens)
    queue.append(last)
    before = 0
    while last.queued:
        first = queue.front()
        _, done = serve(queue, most)
        before += done if first is not last else 0
    # A step may go beyond the point at which its caller's turn ends, once for each other caller.
    assert before <= told + 2 * most


@ANY
@given(st.lists(st.one_of(JOBS.map(tuple), st.integers(1, 20)), max_size=20))
def test_it_counts_what_waits(script: list[tuple[tuple[str, int], ...] | int]) -> None:
    queue, waiting = queue_of(), deque[Job]()
    for step in script:
        if isinstance(step, int):
            if queue.tokens:
                serve(queue, step)
        else:
            for caller, tokens in step:
                waiting.append(Job(caller, tokens))
                queue.append(waiting[-1])
        waiting = deque(job for job in waiting if job.queued)
        assert len(queue) == len(waiting)
        assert queue.tokens == sum(job.queued for job in waiting)


def test_a_greedy_caller_delays_another_by_one_step() -> None:
    queue = queue_of(*[("greedy", 1000)] * 50)
    for _ in range(7):
        serve(queue, 100)
    queue.append(Job("modest", 10))
    assert serve(queue, 100) == ("modest", 10)
    assert serve(queue, 100) == ("greedy", 100)


def test_a_pause_earns_no_credit() -> None:
    queue = queue_of(("steady", 1000), ("late", 1))
    while queue.tokens > 500:
        serve(queue, 10)
    queue.append(Job("late", 1000))
    served: defaultdict[str, int] = defaultdict(int)
    for _ in range(20):
        caller, tokens = serve(queue, 10)
        served[caller] += tokens
    assert served == {"steady": 100, "late": 100}


def test_a_caller_that_comes_one_request_at_a_time_keeps_its_debt() -> None:
    queue = queue_of(("large", 100), *[("small", 10)] * 30)
    served: defaultdict[str, int] = defaultdict(int)
    for _ in range(40):
        if not any(job.caller == "large" for job in queue):
            queue.append(Job("large", 100))
        caller, tokens = serve(queue, 1000)
        served[caller] += tokens
        if served["small"] == 300:
            break
    assert served["large"] <= served["small"] + 100


def test_a_request_that_is_dropped_counts_no_more() -> None:
    queue = queue_of(("a", 10), ("b", 5))
    gone = queue.front()
    assert gone is not None
    gone.queued = 0
    queue.dropped("a", 10)
    queue.dropped("a", 0)
    assert queue.popleft() is gone
    assert (queue.tokens, [job.caller for job in queue]) == (5, ["b"])


def test_who_uses_less_than_its_share_is_served_at_once() -> None:
    queue = queue_of(("greedy", 10_000), credit=100)
    for _ in range(20):
        serve(queue, 10)
    for _ in range(20):
        queue.append(Job("modest", 30))
        assert [serve(queue, 10) for _ in range(6)] == [("modest", 10)] * 3 + [("greedy", 10)] * 3


def test_who_uses_more_has_the_credit_once() -> None:
    queue = queue_of(("steady", 10_000), credit=100)
    for _ in range(20):
        serve(queue, 10)
    queue.append(Job("late", 10_000))
    order = [serve(queue, 10)[0] for _ in range(30)]
    assert order[:10] == ["late"] * 10
    assert sorted(order[10:]) == ["late"] * 10 + ["steady"] * 10


def test_callers_are_forgotten_when_nobody_waits() -> None:
    queue = queue_of(("greedy", 1000))
    serve(queue, 1000)
    queue.append(Job("modest", 100))
    queue.append(Job("greedy", 100))
    served = [serve(queue, 10)[0] for _ in range(10)]
    assert sorted(served) == ["greedy"] * 5 + ["modest"] * 5


def test_an_empty_queue() -> None:
    queue = queue_of()
    assert queue.front() is None
    assert (list(queue), queue.ahead("a", 5)) == ([], 0)
    with pytest.raises(IndexError):
        queue.popleft()
