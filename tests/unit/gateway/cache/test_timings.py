"""Times of stages that ran side by side."""

from gateway.cache.timings import NO_TIME, StageTimings
from winnow.common.v1 import common_pb2


def test_of_parts_side_by_side_the_slowest_of_each_stage_counts() -> None:
    parts = [StageTimings(1.0, 8.0, 3.0, 4.0), StageTimings(5.0, 2.0, 7.0, 0.5)]
    assert StageTimings.slowest([*parts, *parts]) == StageTimings(5.0, 8.0, 7.0, 4.0)


def test_no_parts_took_no_time() -> None:
    assert StageTimings.slowest([]) == NO_TIME


def test_a_workers_timings_and_the_look_up_before_them() -> None:
    worker = common_pb2.Timings(total_ms=9.0, tokenize_ms=1.0, queue_ms=2.0, forward_ms=3.0)
    timings = StageTimings.of(worker, 0.5)
    assert timings == StageTimings(0.5, 1.0, 2.0, 3.0)
    assert timings.proto() == common_pb2.Timings(cache_ms=0.5, tokenize_ms=1.0, queue_ms=2.0, forward_ms=3.0)
