"""Which replica gets the next call: the one that is expected to answer first. Pure decisions; the clock is passed.

A replica's load is the work that this process has in flight there, in estimated tokens. Its slowness is how much longer
than usual it takes: a moving average over its answers, each compared with what the pool's replicas need for as much
work. The next call goes to the least product of the two. So a replica that is ten times slower gets calls only while
the others' queues are ten times as long, and one that stops answering gets none as soon as its oldest call is overdue.
This is the idea of peak-EWMA (Finagle) and of Prequal (NSDI'24). Slowness fades towards 1, so that a replica that has
been slow is tried again, by one call; while that call is overdue, it gets no other.

gRPC's own policies are not enough. `round_robin` gives each replica the same share. `weighted_round_robin` only changes
the shares: a replica ten times slower keeps a twentieth of the calls, and its latency is then the 99th percentile.
`outlier_detection` counts failures, so that a frozen replica is noticed when the deadlines of its calls have passed.
`least_request` does not exist outside of xDS.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeVar

# What a call costs besides its tokens, in tokens: it decides between replicas with few and with many small calls.
_CALL_TOKENS = 32
# Weight of an answer in the moving average of a replica's slowness, and of what the pool needs for as much work; the
# first answers have more.
_SLOWNESS_GAIN = 0.4
_USUAL_GAIN = 0.05
# Differences up to this are noise: such replicas are compared by their load alone.
_NOISE = 1.5
# Time constant of the fading of slowness.
_FADING_S = 20.0
# A replica that has been quiet for less is not overdue, however fast the others are.
_OVERDUE_S = 0.1
# Of a large pool so many are compared for a call, others for the next one; all of them if none of these is usable.
_COMPARED = 8
# Sizes of work are told apart by powers of two.
_SIZES = 64


class Connection(IntEnum):
    """State of the connection to a replica, the best first."""

    READY = 0
    CONNECTING = 1
    FAILING = 2


class Rank(IntEnum):
    """What decides before load and slowness, the best first."""

    USABLE = 0
    PAUSED = 1
    CONNECTING = 2
    SILENT = 3
    FAILING = 4


@dataclass(slots=True, eq=False)
class Sent:
    """A call that is not answered yet. `usual_s`: what the pool needs for as much work; 0: not known."""

    work: int
    size: int
    at: float
    usual_s: float
    cancel: Callable[[], object] | None = None
    given_up: bool = False

    def give_up(self) -> None:
        """Ends the call, because its replica is not expected to answer."""
        self.given_up = True
        if self.cancel is not None:
            self.cancel()


class Load:
    """One replica, as this process sees it."""

    def __init__(self, slowness: float = 1.0, now: float = -math.inf) -> None:
        self.connection = Connection.CONNECTING
        self.silent = False
        """It does not answer at all: see `gateway.models.liveness`."""
        self.paused_until = -math.inf
        """It has refused a call, and is passed over until then if there are others."""
        self.work = 0
        self.unanswered: dict[Sent, None] = {}  # the oldest first
        self.answers = 0
        self._worked_at = -math.inf  # the last result; a refusal or an answer from memory is none
        self._slowness = self._last = slowness
        self._measured_at = now

    @property
    def oldest(self) -> Sent | None:
        """The call that waits the longest."""
        return next(iter(self.unanswered), None)

    def rank(self, now: float) -> Rank:
        """See `Rank`."""
        if self.connection is Connection.FAILING:
            return Rank.FAILING
        if self.silent:
            return Rank.SILENT
        if self.connection is Connection.CONNECTING:
            return Rank.CONNECTING
        return Rank.PAUSED if now < self.paused_until else Rank.USABLE

    def slowness(self, now: float) -> float:
        """How many times longer than usual it takes; at least what the time since its last result says."""
        faded = self._faded(now)
        if now - self._worked_at > _OVERDUE_S:
            for sent in self.unanswered:
                if sent.usual_s:
                    quiet_s = now - max(sent.at, self._worked_at)
                    return max(faded, quiet_s / sent.usual_s) if quiet_s > _OVERDUE_S else faded
        return faded

    def cost(self, work: int, now: float) -> float:
        """What the time until the answer of another call is proportional to."""
        busy = self.work + work + _CALL_TOKENS * (len(self.unanswered) + 1)
        if self._slowness <= _NOISE and now - self._worked_at <= _OVERDUE_S:
            return float(busy)
        slowness = self.slowness(now)
        return busy * slowness if slowness > _NOISE else float(busy)

    def heard(self) -> None:
        """The replica has answered something."""
        self.answers += 1
        self.silent = False

    def worked(self, now: float) -> None:
        """The replica has computed something."""
        self._worked_at = now

    def _faded(self, now: float) -> float:
        """The average, as it has faded since the last answer."""
        return 1 + (self._slowness - 1) * math.exp((self._measured_at - now) / _FADING_S)

    def measured(self, slowness: float, now: float) -> None:
        """Takes a call's slowness into the average.

        One that is slower than the average counts only as far as the one before was, too: a single one may be an
        accident, such as a stall of this process.
        """
        faded = self._faded(now)
        counted = min(slowness, max(faded, self._last))
        self._slowness = faded + _SLOWNESS_GAIN * (counted - faded)
        self._last, self._measured_at = slowness, now


class Loaded(Protocol):
    """Anything with a load."""

    @property
    def load(self) -> Load:
        """Its load."""


R = TypeVar("R", bound=Loaded)


class Balance:
    """Chooses among the replicas of one pool, and learns from their answers how long work takes."""

    def __init__(self) -> None:
        self._usual_s = [0.0] * _SIZES
        self._answers = [0] * _SIZES
        self._turn = 0
        self._asked = 0

    def choose(self, replicas: Sequence[R], work: int, now: float) -> R:
        """The replica for a call of so many tokens; of equal ones the next in turn. There is always one."""
        if len(replicas) == 1:
            return replicas[0]
        self._turn += 1
        first = self._turn % len(replicas)
        ordered = (*replicas[first:], *replicas[:first])
        best = min(ordered[:_COMPARED], key=lambda replica: (replica.load.rank(now), replica.load.cost(work, now)))
        if len(replicas) > _COMPARED and best.load.rank(now) is not Rank.USABLE:
            return min(ordered, key=lambda replica: (replica.load.rank(now), replica.load.cost(work, now)))
        return best

    def in_turn(self, replicas: Sequence[R], now: float) -> R:
        """The next of the replicas of the best rank, whatever their load: for a question that all must be asked."""
        best = min(replica.load.rank(now) for replica in replicas)
        able = [replica for replica in replicas if replica.load.rank(now) == best]
        self._asked += 1
        return able[self._asked % len(able)]

    def sent(self, load: Load, work: int, now: float) -> Sent:
        """Notes a call. Work of 0 tokens is not measured."""
        load.work += work
        size = load.work.bit_length()
        sent = Sent(work, size, now, self._usual_s[size] if work else 0.0)
        load.unanswered[sent] = None
        return sent

    def answered(self, load: Load, sent: Sent, now: float) -> None:
        """Notes the result of a call, and how long it took."""
        self._end(load, sent)
        load.heard()
        if sent.work:
            load.worked(now)
            took_s, usual_s = now - sent.at, self._usual_s[sent.size]
            if usual_s:
                load.measured(took_s / usual_s, now)
            self._answers[sent.size] += 1
            self._usual_s[sent.size] += max(_USUAL_GAIN, 1 / self._answers[sent.size]) * (took_s - usual_s)

    def failed(self, load: Load, sent: Sent, now: float, pause_s: float | None = None) -> None:
        """Notes a call that ended without a result. With `pause_s`, the replica itself has refused it.

        The time until then says how slow the replica is at least: nothing, if it was short.
        """
        self._end(load, sent)
        if pause_s is not None:
            load.heard()
            load.paused_until = now + pause_s
        elif sent.usual_s and (slowness := (now - sent.at) / sent.usual_s) > load.slowness(now):
            load.measured(slowness, now)

    def _end(self, load: Load, sent: Sent) -> None:
        del load.unanswered[sent]
        load.work -= sent.work


def newcomer(loads: Sequence[Load], now: float) -> Load:
    """The load of a new replica: as slow as the pool's median, until it has answered."""
    known = sorted(load.slowness(now) for load in loads)
    return Load(known[len(known) // 2] if known else 1.0, now)
