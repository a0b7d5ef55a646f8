"""Redis stops, and the network between the processes is bad."""

from contextlib import ExitStack

from bench.reliability import figures
from bench.reliability.documents import fill
from bench.reliability.fleet import EMBED_PACE, Fleet
from bench.reliability.generator import Load, Result
from bench.reliability.proxy import FAULTS, Proxy
from bench.reliability.run import ALWAYS, Run, common, milliseconds

_DEADLINE_S = 5.0
# The share of its time that a search gives to the index by default (GATEWAY_SEARCH_RETRIEVE_SHARE), and 100 ms.
_RETRIEVE_S = 0.5 * _DEADLINE_S + 0.1
_SEARCHES, _OTHERS = 0.2, 0.2  # of the capacity: searches, and Embed and Rerank beside them
_OF_THREE, _OF_THREE_DEADLINE_S = 0.4, 2.0
_SLOW_S = 0.5  # a call that takes longer is not well again
_DELAY_S = 0.2


def redis_freeze(run: Run) -> None:
    """SIGSTOP of Redis (8 s in the long form) under searches in a collection, with Embed and Rerank beside them."""
    seconds = run.seconds(10.0)
    frozen, thawed = seconds / 4, seconds / 4 + min(8.0, seconds / 3)
    with Fleet(settings=run.settings) as fleet, ExitStack() as loads:
        fill(fleet.target("gateway"))
        loading = {}
        for kind, share in (("search", _SEARCHES), ("embed", _OTHERS), ("rerank", _OTHERS)):
            rate = share * run.capacity(fleet, kind)
            plan = run.plan(fleet, kind, steps=[(seconds, rate)], timeout=_DEADLINE_S)
            loading[kind] = loads.enter_context(Load(plan))
        for load in loading.values():
            load.begin()
        load.at(frozen)
        fleet.freeze("redis")
        load.at(thawed)
        fleet.thaw("redis")
        results = {kind: load.result() for kind, load in loading.items()}
    case = f"SIGSTOP for {thawed - frozen:.1f} s"
    _searches(run, "redis-freeze", f"{case}, searches", results["search"], frozen, thawed)
    for kind in ("embed", "rerank"):
        _beside(run, f"{case}, {kind} beside", results[kind], frozen, thawed)


def faults_worker(run: Run) -> None:
    """A bad network between the gateway and one of three embed workers."""
    fleet = Fleet(embed=[EMBED_PACE] * 3, settings=run.settings)
    with Proxy(fleet.addresses["embed-1"]) as proxy:
        fleet.via["embed-1"] = proxy.address
        with fleet:
            rate = _OF_THREE * run.capacity(fleet, "embed")
            for fault in FAULTS:
                result, begun, ended = _during(run, fleet, proxy, fault, "embed", rate, _OF_THREE_DEADLINE_S)
                longest = max(outcome.latency for outcome in result.outcomes)
                run.line(
                    "faults-worker", f"{fault} before one of three",
                    {
                        **_success(result, begun), "longest_s": longest, **_recovery(result, begun, ended),
                        **common(result),
                    },
                    {"success": ">= 0.99", "success_later": ">= 1", "trouble_after_s": "<= 1", **ALWAYS},
                )  # fmt: skip


def faults_redis(run: Run) -> None:
    """A bad network between the gateway and Redis, under searches in a collection."""
    fleet = Fleet(settings=run.settings)
    with Proxy(fleet.addresses["redis"]) as proxy:
        fleet.via["redis"] = proxy.address
        with fleet:
            fill(fleet.target("gateway"))
            rate = _SEARCHES * run.capacity(fleet, "search")
            for fault in FAULTS:
                result, begun, ended = _during(run, fleet, proxy, fault, "search", rate, _DEADLINE_S)
                _searches(run, "faults-redis", fault, result, begun, ended)


def _during(
    run: Run, fleet: Fleet, proxy: Proxy, fault: str, kind: str, rate: float, deadline: float
) -> tuple[Result, float, float]:  # fmt: skip
    """The load, and when the fault began and ended."""
    seconds = run.seconds(6.0)
    begun, ended = seconds / 4, 5 * seconds / 8
    seed = run.seed + FAULTS.index(fault)
    with Load(run.plan(fleet, kind, steps=[(seconds, rate)], timeout=deadline, seed=seed)) as load:
        load.begin()
        load.at(begun)
        proxy.begin(fault, _DELAY_S)
        load.at(ended)
        proxy.end()
        return load.result(), begun, ended


def _searches(run: Run, row: str, case: str, result: Result, begun: float, ended: float) -> None:
    meanwhile = [outcome for outcome in result.outcomes if begun <= outcome.at < ended]
    run.line(
        row, case,
        {
            **_success(result, begun),
            "longest_s": max((outcome.latency for outcome in meanwhile), default=0.0),
            "failed_meanwhile": sum(not outcome.ok for outcome in meanwhile),
            "degraded": sum(outcome.degraded for outcome in result.outcomes),
            **_recovery(result, begun, ended),
            **common(result),
        },
        {"longest_s": f"<= {_RETRIEVE_S:g}", "trouble_after_s": "<= 1", **ALWAYS},
    )  # fmt: skip


def _beside(run: Run, case: str, result: Result, begun: float, ended: float) -> None:
    before = figures.percentile(figures.before(result.outcomes, begun), 95)
    meanwhile = figures.percentile((one.latency for one in result.outcomes if begun <= one.at < ended), 95)
    run.line(
        "redis-freeze", case,
        {
            "success": figures.success(result.outcomes),
            "p95_before_ms": milliseconds(before),
            "p95_meanwhile_ms": milliseconds(meanwhile),
            "p95_ratio": (meanwhile or 0) / (before or 1),
            **common(result),
        },
        {"success": ">= 1", "p95_ratio": "<= 1.5", **ALWAYS},
    )  # fmt: skip


def _success(result: Result, fault: float) -> dict[str, object]:
    return {
        "success": figures.success(result.outcomes),
        "success_first_second": figures.success(result.outcomes, fault, fault + 1),
        "success_later": figures.success(result.outcomes, fault + 1),
    }


def _recovery(result: Result, begun: float, ended: float) -> dict[str, object]:
    """How long calls fail or are slow after the fault has ended."""
    before = figures.percentile(figures.before(result.outcomes, begun), 99) or 0.0
    return {
        "trouble_after_s": figures.trouble_until(result.outcomes, ended, max(_SLOW_S, 2 * before)),
        "p99_before_ms": milliseconds(before),
    }
