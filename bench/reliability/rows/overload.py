"""More calls than the system can answer."""

from collections.abc import Sequence

from bench.reliability import figures
from bench.reliability.documents import fill
from bench.reliability.fleet import Fleet
from bench.reliability.generator import Load, Result
from bench.reliability.generator import run as run_plan
from bench.reliability.run import ALWAYS, Run, common, milliseconds

_SHARE = 0.9  # of the capacity
_REAL_MODEL, _REAL_WORDS = "0.6b-4layers", 12
_FAST_PACE, _WINDOW_S = 12_000.0, 2.0  # arrivals are random: a window holds enough of them
_BURST, _BURST_DEADLINE_S = 5_000, 20.0
_FLAT = 1.1  # memory after over memory before


def overload(run: Run) -> None:
    """Each kind of call at several times the capacity, with short and long deadlines."""
    with run.start(settings=run.settings) as fleet:
        if "search" in run.kinds:
            fill(fleet)
        for kind in run.kinds:
            _cells(run, fleet, "overload", kind)


def overload_real(run: Run) -> None:
    """Embed likewise with a model that really computes, on the cores that the gateway and the load share with it."""
    from bench.checkpoints import CACHE, named, prepare  # it imports torch, which the other rows do not need here

    folder = prepare(named(_REAL_MODEL, cache=run.folder or CACHE), "embed")
    with run.start(embed=[folder], rerank=[], settings=run.settings) as fleet:
        _cells(run, fleet, "overload-real", "embed", words=_REAL_WORDS)


def step(run: Run) -> None:
    """From 0.7 to 1.4 times the capacity of Embed in one moment."""
    seconds = run.seconds(6.0)
    with run.start(embed=[_FAST_PACE], rerank=[], settings=run.settings) as fleet:
        capacity = run.capacity(fleet, "embed")
        plan = run.plan(
            fleet, "embed", steps=[(seconds, 0.7 * capacity), (2 * seconds, 1.4 * capacity)], timeout=1.0
        )  # fmt: skip
        result = run_plan(plan)
    after = [outcome for outcome in result.outcomes if outcome.at >= seconds]
    reached, stable = figures.reached_and_stable_after(
        result.outcomes, seconds, 3 * seconds, _SHARE * capacity, min(_WINDOW_S, seconds)
    )
    run.line(
        "step", "embed 0.7 to 1.4 x, deadline 1 s",
        {
            "capacity": capacity,
            "reached_after_ms": milliseconds(reached),
            "stable_after_ms": milliseconds(stable),
            "goodput_before": figures.goodput(result.outcomes, 0, seconds, 1.0) / capacity,
            "goodput_after": figures.goodput(result.outcomes, seconds, 3 * seconds, 1.0) / capacity,
            "admitted_p99_s": figures.percentile((one.latency for one in after if not one.refused), 99),
            **common(result),
        },
        {"stable_after_ms": "<= 100", "goodput_after": f">= {_SHARE}", "admitted_p99_s": "<= 1", **ALWAYS},
    )  # fmt: skip


def burst(run: Run) -> None:
    """Thousands of calls in the same moment over four channels."""
    with run.start(rerank=[], settings=run.settings) as fleet:
        plan = run.plan(fleet, "embed", at_once=_BURST, timeout=run.seconds(_BURST_DEADLINE_S), words=5, probes=True)
        before = fleet.usage("gateway-0")
        result = run_plan(plan)
        after = fleet.usage("gateway-0")
    run.line(
        "burst", f"{_BURST} embed calls at once",
        {
            "answered": figures.success(result.outcomes),
            "longest_s": max(outcome.latency for outcome in result.outcomes),
            "back_s": result.back,
            "gateway_mb": [round(before.rss_mb), round(after.rss_mb)],
            **common(result),
        },
        ALWAYS,
    )  # fmt: skip


def _cells(run: Run, fleet: Fleet, row: str, kind: str, **words: object) -> None:
    capacity = run.capacity(fleet, kind, **words)
    for factor in run.factors:
        for deadline in run.deadlines:
            _cell(run, fleet, row, kind, capacity, factor, deadline, words)


def _cell(
    run: Run, fleet: Fleet, row: str, kind: str, capacity: float, factor: float, deadline: float,
    words: dict[str, object],
) -> None:  # fmt: skip
    seconds = run.seconds(4.0)
    seed = run.seed + int(1000 * factor + 10 * deadline)
    plan = run.plan(
        fleet, kind, steps=[(seconds, factor * capacity)], timeout=deadline, probes=True, **{**words, "seed": seed}
    )  # fmt: skip
    members = ["gateway-0", "rerank-0" if kind in ("rerank", "search") else "embed-0"]
    before = [fleet.usage(name).rss_mb for name in members]
    with Load(plan) as load:
        load.begin()
        load.at(seconds / 2)
        fleet.renew()
        result = load.result()
    after = [fleet.usage(name).rss_mb for name in members]
    run.line(
        row, f"{kind} {factor:g} x, deadline {deadline:g} s",
        {
            "capacity": capacity,
            **_goodput(result, seconds, deadline, capacity),
            **_refusals(result),
            "admitted_p99_s": figures.percentile((one.latency for one in result.outcomes if not one.refused), 99),
            "back_s": result.back,
            "gateway_mb": [round(before[0]), round(after[0])],
            "worker_mb": [round(before[1]), round(after[1])],
            "memory": _growth(before, after),
            **common(result),
        },
        {
            "goodput_first": f">= {_SHARE}", "goodput_second": f">= {_SHARE}", "refusals_p99_ms": "< 50",
            "refusals_retry_info": ">= 1", "admitted_p99_s": f"<= {deadline:g}", "back_s": "<= 1",
            "memory": f"<= {_FLAT}", **ALWAYS,
        },
    )  # fmt: skip


def _goodput(result: Result, seconds: float, deadline: float, capacity: float) -> dict[str, object]:
    """Of the capacity, by half; and of whole answers, without degraded ones."""
    whole = [outcome for outcome in result.outcomes if not outcome.degraded]
    return {
        "goodput_first": figures.goodput(result.outcomes, 0, seconds / 2, deadline) / capacity,
        "goodput_second": figures.goodput(result.outcomes, seconds / 2, seconds, deadline) / capacity,
        "goodput_whole_answers": figures.goodput(whole, 0, seconds, deadline) / capacity,
    }


def _refusals(result: Result) -> dict[str, object]:
    refusals = [outcome for outcome in result.outcomes if outcome.refused]
    if not refusals:  # nothing to hold against the bounds
        return {"refusals_p99_ms": 0.0, "refusals_retry_info": 1.0, "refusals": 0}
    return {
        "refusals_p99_ms": milliseconds(figures.percentile((outcome.latency for outcome in refusals), 99)),
        "refusals_retry_info": figures.share(refusals, lambda outcome: outcome.retry_info),
        "refusals": len(refusals),
    }


def _growth(before: Sequence[float], after: Sequence[float]) -> float:
    return max(later / earlier for earlier, later in zip(before, after, strict=True))
