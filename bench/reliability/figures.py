"""Figures of the calls of a load. Pure functions."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bench.reliability.outcomes import Outcome

_TOGETHER_S = 0.01  # between the answers of a batch, at most


def capacity(outcomes: Sequence[Outcome], settled_s: float) -> float:
    """Answers per second of a closed loop, from the first answer after `settled_s` to the last before its calls end.

    If that is no more than one batch, of all answers since the beginning.
    """
    until = max((outcome.at for outcome in outcomes), default=0.0)
    every = sorted(_end(outcome) for outcome in outcomes if outcome.ok)
    ends = [end for end in every if settled_s <= end <= until]
    # The calls of a batch end together: what ends with the first of them is not of the time that is measured.
    after = [end for end in ends if end > ends[0] + _TOGETHER_S]
    if after:
        return len(after) / (after[-1] - ends[0])
    return len(every) / every[-1] if every else 0.0


def goodput(outcomes: Iterable[Outcome], begun: float, ended: float, deadline: float) -> float:
    """Answers in time per second, of those that arrived in [begun, ended)."""
    good = sum(outcome.ok and outcome.latency <= deadline and begun <= _end(outcome) < ended for outcome in outcomes)
    return good / (ended - begun)


def percentile(values: Iterable[float], percent: float) -> float | None:
    """None if there are no values."""
    found = list(values)
    return float(np.percentile(found, percent)) if found else None


def before(outcomes: Iterable[Outcome], moment: float) -> list[float]:
    """Latencies of the calls that had ended by then."""
    return [outcome.latency for outcome in outcomes if _end(outcome) < moment]


def success(outcomes: Iterable[Outcome], begun: float = 0.0, ended: float = float("inf")) -> float | None:
    """The share of answered calls, of those that were meant to be sent in [begun, ended)."""
    found = [outcome.ok for outcome in outcomes if begun <= outcome.at < ended]
    return sum(found) / len(found) if found else None


def share(outcomes: Sequence[Outcome], fact: Callable[[Outcome], bool]) -> float | None:
    """The share of them of which the fact is true; None if there are none."""
    return sum(map(fact, outcomes)) / len(outcomes) if outcomes else None


def codes(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many calls ended with each code and reason."""
    return dict(Counter(" ".join(filter(None, (outcome.code, outcome.reason))) for outcome in outcomes).most_common())


def unexplained(outcomes: Iterable[Outcome]) -> int:
    """Calls whose end is none that the contract names, or a refusal without a reason that the caller did not time out.

    UNAVAILABLE without a reason comes from the channel itself: the server is not there.
    """
    return sum(
        not outcome.explained or (outcome.code == "RESOURCE_EXHAUSTED" and not outcome.reason) for outcome in outcomes
    )


def reached_and_stable_after(
    outcomes: Sequence[Outcome], begun: float, ended: float, least: float, window: float = 1.0
) -> tuple[float | None, float | None]:
    """Seconds from `begun` until the rate of answers over a window is at least `least`, and until it stays so.

    A batch is answered in one moment, and its answers count evenly over the time since the batch before: whether a
    window holds the ends of twelve batches or of thirteen says nothing of the rate. A window counts as its beginning.
    None: never.
    """
    ends = np.sort([_end(outcome) for outcome in outcomes if outcome.ok])
    moments = np.arange(begun, ended - window, 0.05)
    if not len(moments):
        return None, None
    last = np.flatnonzero(np.diff(ends, append=np.inf) > _TOGETHER_S)  # answers of a batch
    answered = np.interp([moments, moments + window], [0.0, *ends[last]], [0, *(last + 1)])
    rates = (answered[1] - answered[0]) / window
    high, low = np.flatnonzero(rates >= least), np.flatnonzero(rates < least)
    reached = float(moments[high[0]] - begun) if len(high) else None
    if not len(low):
        return reached, 0.0
    return reached, None if low[-1] == len(moments) - 1 else float(moments[low[-1] + 1] - begun)


def trouble_until(outcomes: Sequence[Outcome], since: float, slow: float) -> float:
    """Seconds from `since` to the last call that failed or took longer than `slow`; 0 if there is none."""
    bad = [outcome.at for outcome in outcomes if outcome.at >= since and (not outcome.ok or outcome.latency > slow)]
    return max(bad) - since if bad else 0.0


def slope(moments: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Growth per hour by linear regression, and its standard error."""
    if len(moments) < 3:
        return 0.0, float("inf")
    hours, grown = np.asarray(moments) / 3600.0, np.asarray(values) - values[0]  # what never changes is exactly 0
    centred = hours - hours.mean()
    spread = float((centred**2).sum())
    growth = float((centred * grown).sum()) / spread
    left = grown - grown.mean() - growth * centred
    return growth, float(np.sqrt((left**2).sum() / (len(hours) - 2) / spread))


def _end(outcome: Outcome) -> float:
    return outcome.at + outcome.latency
