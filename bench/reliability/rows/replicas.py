"""One of three embed workers dies, stops or is slow."""

from bench.reliability import figures
from bench.reliability.fleet import EMBED_PACE, Fleet
from bench.reliability.generator import Load, Result
from bench.reliability.generator import run as run_plan
from bench.reliability.run import ALWAYS, Run, common, milliseconds

_LOAD = 0.4  # of the capacity of three, so that two take it easily
_DEADLINE_S = 2.0  # so that a call which waits for a frozen replica until a ping times out fails
_TENTH = EMBED_PACE / 10


def kill(run: Run) -> None:
    """SIGKILL, and a new one after a while."""
    seconds = run.seconds(6.0)
    with run.start(embed=[EMBED_PACE] * 3, rerank=[], settings=run.settings) as fleet:
        rate = _LOAD * run.capacity(fleet, "embed")
        with Load(run.plan(fleet, "embed", steps=[(seconds, rate)], timeout=_DEADLINE_S)) as load:
            load.begin()
            load.at(seconds / 3)
            fleet.kill("embed-1")
            load.at(seconds / 2)
            fleet.start("embed-1")
            result = load.result()
    _line(run, "kill", "kill -9 of one of three", result, seconds / 3, {"success": ">= 0.999"})


def freeze(run: Run) -> None:
    """SIGSTOP for most of the load (12 s of the long form)."""
    seconds = run.seconds(12.0)
    frozen, thawed = seconds / 4, seconds / 4 + min(12.0, seconds / 2)
    with run.start(embed=[EMBED_PACE] * 3, rerank=[], settings=run.settings) as fleet:
        rate = _LOAD * run.capacity(fleet, "embed")
        with Load(run.plan(fleet, "embed", steps=[(seconds, rate)], timeout=_DEADLINE_S)) as load:
            load.begin()
            load.at(frozen)
            fleet.freeze("embed-1")
            load.at(thawed)
            fleet.thaw("embed-1")
            result = load.result()
    asked = {"success": ">= 0.99", "success_later": ">= 1"}
    _line(run, "freeze", f"SIGSTOP of one of three for {thawed - frozen:.1f} s", result, frozen, asked)


def slow(run: Run) -> None:
    """One that is ten times slower than its two neighbours, beside three equal ones, and those two neighbours alone.

    The last figure is the bound: who sends the slow one nothing at all has two thirds of the replicas left.
    """
    seconds = run.seconds(6.0)
    fleet = Fleet(embed=[EMBED_PACE] * 3 + [_TENTH], rerank=[], gateways=3, settings=run.settings)
    reached = [fleet.workers[:3], fleet.workers[1:4], fleet.workers[1:3]]
    fleet.reached = dict(zip(fleet.gateways, reached, strict=True))
    with fleet:
        rate = _LOAD * run.capacity(fleet, "embed", target=f"ipv4:{fleet.addresses['gateway-0']}")
        results = [
            run_plan(
                run.plan(
                    fleet, "embed", target=f"ipv4:{fleet.addresses[gateway]}", steps=[(seconds, rate)],
                    timeout=_DEADLINE_S, seed=run.seed + place,
                )
            )
            for place, gateway in enumerate(fleet.gateways)
        ]  # fmt: skip
    of_equal, of_uneven, of_two = (
        figures.percentile((one.latency for one in result.outcomes), 99) for result in results
    )  # fmt: skip
    run.line(
        "slow", "one of three ten times slower",
        {
            "p99_ms": milliseconds(of_uneven),
            "p99_of_equal_ms": milliseconds(of_equal),
            "p99_ratio": (of_uneven or 0) / (of_equal or 1),
            "p99_ratio_of_two": (of_two or 0) / (of_equal or 1),
            "p50_ms": milliseconds(figures.percentile((one.latency for one in results[1].outcomes), 50)),
            "success": figures.success(results[1].outcomes),
            "rate": rate,
            **common(results[1]),
        },
        {"p99_ratio": "<= 1.5", "success": ">= 1", **ALWAYS},
    )  # fmt: skip


def _line(run: Run, row: str, case: str, result: Result, fault: float, asked: dict[str, str]) -> None:
    run.line(
        row, case,
        {
            "success": figures.success(result.outcomes),
            "success_first_second": figures.success(result.outcomes, fault, fault + 1),
            "success_later": figures.success(result.outcomes, fault + 1),
            "p99_ms": milliseconds(figures.percentile((one.latency for one in result.outcomes), 99)),
            "longest_s": max(one.latency for one in result.outcomes),
            **common(result),
        },
        {**asked, **ALWAYS},
    )  # fmt: skip
