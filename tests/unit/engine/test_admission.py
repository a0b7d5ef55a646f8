"""What is refused, why, and when to come back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.admission import Admission, Found
from services.engine.errors import DeadlineTooShort, EngineError, Overloaded
from services.engine.jobs import Limits
from services.engine.throughput import Throughput
from services.engine.types import Priority

RATE = 100.0  # tokens per second, whatever the batch
LIMITS = Limits(batch=50, bulk=40, queue=1000, mixed=20, queue_s=2.0)
INTERACTIVE, BULK = Priority.INTERACTIVE, Priority.BULK


def found(interactive: int = 0, bulk: int = 0, in_flight_s: float = 0.0) -> Found:
    return Found({INTERACTIVE: interactive, BULK: bulk}, in_flight_s)


def refusal(
    tokens: int, left: float | None, before: Found, priority: Priority = INTERACTIVE, *, probe: bool = False
) -> EngineError | None:
    admission = Admission(LIMITS, Throughput({LIMITS.batch: RATE}, LIMITS.batch))
    return admission.refusal(tokens, tokens, priority, left, before, probe=probe)


def retry_after(refused: EngineError | None) -> float:
    assert isinstance(refused, Overloaded)
    return refused.retry_after_s


def test_own_work_that_takes_too_long_is_no_fault_of_the_queue() -> None:
    """No replica could do it, however much waits here."""
    for before in (found(), found(interactive=900, bulk=90, in_flight_s=5.0)):
        assert isinstance(refusal(50, 0.49, before), DeadlineTooShort)
        assert isinstance(refusal(50, 0.0, before, probe=True), DeadlineTooShort)
    assert refusal(50, 0.51, found()) is None
    assert refusal(50, 0.49, found(), probe=True) is None


def test_what_waits_before_it_sends_a_request_elsewhere() -> None:
    # Two fifths of what it has to spare: of 3 s less 0.5 s of its own and 0.5 s under way.
    assert refusal(50, 3.0, found(interactive=80, in_flight_s=0.5)) is None
    assert retry_after(refusal(50, 3.0, found(interactive=90, in_flight_s=0.5))) == pytest.approx(0.5 + 0.9 - 0.8)
    assert retry_after(refusal(50, 0.9, found(in_flight_s=0.5))) == pytest.approx(0.5)


def test_without_a_deadline_the_wait_is_bounded_in_seconds() -> None:
    assert refusal(50, None, found(interactive=200, in_flight_s=9.0)) is None
    assert retry_after(refusal(50, None, found(interactive=210, in_flight_s=0.3))) == pytest.approx(0.3 + 2.1 - 2.0)


def test_a_large_request_is_taken_on_the_terms_of_a_small_one() -> None:
    assert refusal(700, None, found()) is None  # 7 s of work, and the queue has 2
    assert refusal(700, None, found(interactive=200)) is None
    assert isinstance(refusal(700, None, found(interactive=210)), Overloaded)


def test_bulk_work_waits_as_long_as_it_has_time() -> None:
    assert refusal(50, None, found(interactive=400, bulk=400), BULK) is None
    assert refusal(50, 30.0, found(interactive=400, bulk=400), BULK) is None
    assert isinstance(refusal(50, 15.0, found(interactive=400, bulk=400), BULK), Overloaded)
    assert refusal(50, 5.0, found(bulk=800)) is None  # none of it is before an interactive request


def test_memory_is_bounded_in_tokens() -> None:
    assert retry_after(refusal(20, None, found(bulk=990, in_flight_s=0.2))) == pytest.approx(0.2 + 0.1)
    assert isinstance(refusal(20, None, found(bulk=740), BULK), Overloaded)  # a quarter is for interactive requests
    assert refusal(1000, None, found(), BULK) is None


def test_what_leaves_the_queue_may_be_in_time_elsewhere() -> None:
    admission = Admission(LIMITS, Throughput({LIMITS.batch: RATE}, LIMITS.batch))
    assert admission.late(100, 50, 50, 1.6) is None
    assert retry_after(admission.late(100, 50, 50, 1.4)) == pytest.approx(1.0)
    assert isinstance(admission.late(100, 50, 50, 0.4), DeadlineTooShort)


@given(
    tokens=st.integers(1, 1000),
    left=st.none() | st.floats(-1, 100),
    interactive=st.integers(0, 1000),
    bulk=st.integers(0, 1000),
    in_flight_s=st.floats(0, 10),
    priority=st.sampled_from(Priority),
)
def test_every_refusal_says_when_to_come_back_or_that_it_is_of_no_use(
    tokens: int, left: float | None, interactive: int, bulk: int, in_flight_s: float, priority: Priority
) -> None:
    refused = refusal(tokens, left, found(interactive, bulk, in_flight_s), priority)
    idle = refusal(tokens, left, found(), priority)
    assert isinstance(refused, DeadlineTooShort) == isinstance(idle, DeadlineTooShort)
    if isinstance(refused, Overloaded):
        assert 0 < refused.retry_after_s < math.inf
        assert idle is None  # an idle replica takes it
