"""Half of the capacity for a long time, with restarts in it, and what grows meanwhile."""

import time
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from bench.reliability import figures
from bench.reliability.calls import KINDS
from bench.reliability.documents import fill
from bench.reliability.fleet import EMBED_PACE, RERANK_PACE, Fleet, Usage
from bench.reliability.generator import Load, Result
from bench.reliability.rows.rolling import restart_all
from bench.reliability.run import ALWAYS, Run, common

SECONDS = 1800.0
_DEADLINE_S = 10.0
# Two of the four kinds need the embed workers and two the rerank workers.
_SHARE = 0.25
# Restarts happen first, and slopes are those of what follows: of processes as they run on.
_ROLLING, _REDIS, _STEADY, _SAMPLED = 0.1, 0.3, 0.35, 0.65  # of the whole; a restart may take longer
_LONGEST_S = 600.0  # of the restarts, and so of the load beyond what is asked for
_BLOCKS = 30  # means of so many periods are regressed: samples of one process close in time are alike
_NOISE = 3.0  # standard errors
# So that the cache is full before the slopes are taken: it may grow up to this.
_CACHE = {"GATEWAY_CACHE_LOCAL_BYTES": str(4 << 20)}
Sample = tuple[float, dict[str, Usage]]
_MEMORY: dict[str, Callable[[Usage], float]] = {
    "memory": lambda usage: usage.rss_mb,
    "descriptors": lambda usage: usage.descriptors,
    "threads": lambda usage: usage.threads,
}


def soak(run: Run) -> None:
    """All kinds of calls at half capacity; all processes are restarted in turn, and Redis once."""
    seconds = run.given_seconds or SECONDS
    started = run.start(
        embed=[EMBED_PACE] * 3, rerank=[RERANK_PACE] * 2, gateways=2, settings={**_CACHE, **run.settings}
    )  # fmt: skip
    with started as fleet, ExitStack() as loads:
        fill(fleet)
        loading = {}
        for kind in KINDS:
            rate = _SHARE * run.capacity(fleet, kind)
            steps = [(seconds + _LONGEST_S, rate)]
            plan = run.plan(fleet, kind, steps=steps, timeout=_DEADLINE_S, retries=True, until_told=True)
            loading[kind] = loads.enter_context(Load(plan))
        for load in loading.values():
            load.begin()
        load.at(_ROLLING * seconds)
        restart_all(fleet)
        load.at(_REDIS * seconds)
        fleet.restart("redis")
        load.at(_STEADY * seconds)
        steady = load.elapsed()
        samples = _samples(fleet, load, steady + _SAMPLED * seconds)
        for load in loading.values():
            load.end()
        results = {kind: load.result() for kind, load in loading.items()}
    grown = {kind: _of_latency(result, steady) for kind, result in results.items()}
    for name, figure in _MEMORY.items():
        growth = {member: _of_usage(samples, member, figure) for member in samples[0][1]}
        _line(run, f"{name} of each process, per hour", growth, {}, {})
    for kind, result in results.items():
        measured = {"success": figures.success(result.outcomes), **common(result)}
        _line(run, f"{kind}: latency, seconds per hour", {"latency": grown[kind]}, measured, ALWAYS)


def _samples(fleet: Fleet, load: Load, until: float) -> list[Sample]:
    """Some hundred of them, at least one a second."""
    found: list[Sample] = []
    names = [*fleet.workers, *fleet.gateways]
    pause = min(1.0, (until - load.elapsed()) / 200)
    while (now := load.elapsed()) < until:
        found.append((now, {name: fleet.usage(name) for name in names}))
        time.sleep(pause)
    return found


def _line(
    run: Run, case: str, growth: dict[str, tuple[float, float]], measured: dict[str, object], asked: dict[str, str]
) -> None:  # fmt: skip
    """The greatest growth over its standard error is what is held against noise."""
    sigmas = [abs(slope) / error if error else (0.0 if not slope else float("inf")) for slope, error in growth.values()]
    slopes = {name: {"slope": slope, "error": error} for name, (slope, error) in growth.items()}
    run.line(
        "soak", case, {"slopes": slopes, "worst": max(sigmas), **measured}, {"worst": f"<= {_NOISE:g}", **asked}
    )  # fmt: skip


def _of_usage(samples: list[Sample], member: str, figure: Callable[[Usage], float]) -> tuple[float, float]:
    moments = [moment for moment, _ in samples]
    return _regressed(moments, [float(figure(usages[member])) for _, usages in samples])


def _of_latency(result: Result, since: float) -> tuple[float, float]:
    found = [outcome for outcome in result.outcomes if outcome.at >= since and outcome.ok]
    return _regressed([outcome.at for outcome in found], [outcome.latency for outcome in found])


def _regressed(moments: list[float], values: list[float]) -> tuple[float, float]:
    """The slope of the means of `_BLOCKS` periods."""
    blocks = min(_BLOCKS, len(moments))
    means = [
        [float(part.mean()) for part in np.array_split(numbers, blocks)]
        for numbers in (np.asarray(moments), np.asarray(values) - values[0])  # what never changes is exactly 0
    ]
    return figures.slope(*means)
