"""Where the time of an answer went."""

from collections.abc import Iterable
from dataclasses import dataclass

from winnow.common.v1 import common_pb2


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Milliseconds of the stages below a call."""

    cache_ms: float = 0.0
    tokenize_ms: float = 0.0
    queue_ms: float = 0.0
    forward_ms: float = 0.0

    @classmethod
    def of(cls, timings: common_pb2.Timings, cache_ms: float) -> "StageTimings":
        """What a worker said, and the look-up before it."""
        return cls(cache_ms, timings.tokenize_ms, timings.queue_ms, timings.forward_ms)

    @classmethod
    def slowest(cls, timings: Iterable["StageTimings"]) -> "StageTimings":
        """Of timings that ran side by side, the slowest of each stage."""
        distinct = list({id(one): one for one in timings}.values())
        return cls(
            max((one.cache_ms for one in distinct), default=0.0),
            max((one.tokenize_ms for one in distinct), default=0.0),
            max((one.queue_ms for one in distinct), default=0.0),
            max((one.forward_ms for one in distinct), default=0.0),
        )

    def proto(self) -> common_pb2.Timings:
        """As the contract has it, without a total."""
        return common_pb2.Timings(
            cache_ms=self.cache_ms, tokenize_ms=self.tokenize_ms, queue_ms=self.queue_ms, forward_ms=self.forward_ms
        )


NO_TIME = StageTimings()
