"""One run of the rows: its settings, what all rows measure alike, and the lines that it prints."""

import operator
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.reliability import figures
from bench.reliability.calls import KINDS
from bench.reliability.fleet import Fleet
from bench.reliability.generator import Result
from bench.reliability.generator import run as run_plan
from bench.reliability.load import Plan

_BOUNDS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "<": operator.lt, "==": operator.eq,
}  # fmt: skip
# Documents of a call, so that a worker computes some 20 to 60 calls per second at the paces of `fleet`.
DOCUMENTS = {"embed": 1, "rerank": 20, "inline": 6, "search": 20}
_CAPACITY_LEAST_S, _CAPACITY_MOST_S = 2.0, 10.0
_CLOSED_LOOP = 48  # calls in flight per replica: two full batches of embedded texts


@dataclass(frozen=True, slots=True)
class Run:
    """`given_seconds` overrides the length of every load. `settings` are those of the processes; `texts`: of a flood;
    `requests`: hostile ones.

    `emit` is called with each line. `kinds` and `factors` limit the cells of the overload rows.
    """

    emit: Callable[[Mapping[str, object]], None]
    say: Callable[[str], None] = lambda line: None
    given_seconds: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    seed: int = 1
    texts: int = 30_000_000
    requests: int = 2_000
    kinds: tuple[str, ...] = KINDS
    factors: tuple[float, ...] = (2.0, 4.0)
    deadlines: tuple[float, ...] = (1.0, 5.0)
    start: Callable[..., AbstractContextManager[Fleet]] = Fleet
    """How a row starts what it measures."""
    folder: Path | None = None
    """Of random models; by default that of all benches."""

    def seconds(self, short: float) -> float:
        """The length of a load: `short`, unless another is given."""
        return self.given_seconds or short

    def line(self, row: str, case: str, measured: Mapping[str, object], asked: Mapping[str, str]) -> None:
        """Prints what was measured beside what is asked of it: bounds such as ">= 0.9" by name."""
        rounded = {name: _rounded(value) for name, value in measured.items()}
        missed = [name for name, bound in asked.items() if not meets(measured.get(name), bound)]
        self.emit({"bench": "chaos", "row": row, "case": case, "asked": asked, "missed": missed, "measured": rounded})

    def plan(self, fleet: Fleet, kind: str, **words: Any) -> Plan:
        """A plan for calls of this kind to all gateways of the fleet."""
        usual = Plan(
            fleet.target("gateway"), kind, seed=self.seed, documents=DOCUMENTS[kind], tls=fleet.tls,
            worker=fleet.worker_target(kind),
        )  # fmt: skip
        return replace(usual, **words)

    def capacity(self, fleet: Fleet, kind: str, **words: Any) -> float:
        """Calls per second that the fleet answers if as many as it takes are always in flight."""
        replicas = sum(name.startswith("embed") for name in fleet.workers)
        seconds = min(_CAPACITY_MOST_S, max(_CAPACITY_LEAST_S, self.seconds(4.0)))
        plan = self.plan(
            fleet, kind, concurrency=_CLOSED_LOOP * replicas, seconds=seconds, seed=self.seed + 70_000, **words
        )
        found = run_plan(plan)
        measured = figures.capacity(found.outcomes, seconds / 4)
        self.say(f"{kind}: capacity {measured:.1f} calls/s")
        if not measured:
            raise RuntimeError(f"no {kind} call was answered: {figures.codes(found.outcomes)}")
        return measured


def meets(value: object, bound: str) -> bool:
    """Whether a figure is within a bound such as ">= 0.9". A figure that is missing is not."""
    sign, _, limit = bound.partition(" ")
    return isinstance(value, int | float) and _BOUNDS[sign](float(value), float(limit))


def common(result: Result) -> dict[str, object]:
    """What every row says of its calls."""
    return {
        "calls": len(result.outcomes),
        "codes": figures.codes(result.outcomes),
        "unexplained": figures.unexplained(result.outcomes),
        "checked": result.checked,
        "wrong": result.wrong,
        "lag_p99_ms": milliseconds(figures.percentile((outcome.lag for outcome in result.outcomes), 99)),
    }


ALWAYS = {"unexplained": "== 0", "wrong": "== 0"}
"""What is asked of every row."""


def milliseconds(seconds: float | None) -> float | None:
    """Of a figure that may be missing."""
    return None if seconds is None else 1000 * seconds


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value
