"""Times of the stages of an answer."""

from collections.abc import Iterable
from dataclasses import dataclass

from winnow.common.v1 import common_pb2


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Milliseconds of each stage below a call."""

    cache_ms: float = 0.0
    tokenize_ms: float = 0.0
    queue_ms: float = 0.0
    forward_ms: float = 0.0

    @classmethod
    def of(cls, timings: common_pb2.Timings, cache_ms: float) -> "StageTimings":
        """The timings of a worker, and of the look-up before."""
        return cls(cache_ms, timings.tokenize_ms, timings.queue_ms, timings.forward_ms)

    @classmethod
    def slowest(cls, timings: Iterable["StageTimings"]) -> "StageTimings":
        """The slowest of each stage, of parts that ran concurrently."""
        distinct = list({id(one): one for one in timings}.values())
        return cls(
            max((one.cache_ms for one in distinct), default=0.0),
            max((one.tokenize_ms for one in distinct), default=0.0),
            max((one.queue_ms for one in distinct), default=0.0),
            max((one.forward_ms for one in distinct), default=0.0),
        )

    def proto(self) -> common_pb2.Timings:
        """As a message, without the total."""
        return common_pb2.Timings(
            cache_ms=self.cache_ms, tokenize_ms=self.tokenize_ms, queue_ms=self.queue_ms, forward_ms=self.forward_ms
        )


NO_TIME = StageTimings()
