"""Redis stops, and the network between the processes is bad."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from bench.reliability import figures
from bench.reliability.documents import fill
from bench.reliability.fleet import EMBED_PACE, Fleet
from bench.reliability.generator import Load, Result
from bench.reliability.network import Namespace, unavailable
from bench.reliability.proxy import FAULTS, Proxy
from bench.reliability.run import ALWAYS, Run, common, milliseconds

_DEADLINE_S = 5.0
# The share of its time that a search gives to the index by default (GATEWAY_SEARCH_RETRIEVE_SHARE), and 100 ms.
_RETRIEVE_S = 0.5 * _DEADLINE_S + 0.1
_SEARCHES, _OTHERS = 0.2, 0.2  # of the capacity: searches, and Embed and Rerank beside them
_OF_THREE, _OF_THREE_DEADLINE_S = 0.4, 2.0
_SLOW_S = 0.5  # a call that takes longer is not well again
_DELAY_S = 0.2
_SECONDS = 8.0
_BAD = {"delay_s": 0.05, "jitter_s": 0.02, "loss": 0.02}  # in each direction
_DEAD_S = 3.0


def redis_freeze(run: Run) -> None:
    """SIGSTOP of Redis (8 s in the long form) under searches in a collection, with Embed and Rerank beside them."""
    seconds = run.seconds(10.0)
    frozen, thawed = seconds / 4, seconds / 4 + min(8.0, seconds / 3)
    with run.start(settings=run.settings) as fleet, ExitStack() as loads:
        fill(fleet)
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


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is done at two moments of a load."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None]
    begun: float
    ended: float


def faults_worker(run: Run) -> None:
    """A bad network between the gateway and one of three embed workers."""
    fleet = Fleet(embed=[EMBED_PACE] * 3, rerank=[], settings=run.settings)
    with Proxy(fleet.addresses["embed-1"]) as proxy:
        fleet.via["embed-1"] = proxy.address
        with fleet:
            _of_three(run, fleet, "faults-worker", _of_proxy(run, proxy), {"success_later": ">= 1"})


def lossy(run: Run) -> None:
    """The link to one of three embed workers is slow and loses packets, then loses all of them."""
    if missing := unavailable():
        run.say(f"lossy: skipped, {missing}")
        return
    seconds = run.seconds(_SECONDS)
    begun, slow, dead = seconds / 4, 3 * seconds / 8, min(_DEAD_S, seconds / 2)
    fleet = Fleet(embed=[EMBED_PACE] * 3, rerank=[], settings=run.settings)
    with Namespace(run.seed) as network:
        fleet.addresses["embed-1"] = f"{network.inside}:{fleet.addresses['embed-1'].rpartition(':')[2]}"
        fleet.within["embed-1"] = network.command()
        well, bad, cut = network.degrade, partial(network.degrade, **_BAD), partial(network.degrade, loss=1.0)
        faults = [
            _Fault("50 ms ± 20 ms and 2 % loss", bad, well, begun, begun + slow),
            _Fault(f"100 % loss for {dead:g} s", cut, well, begun, begun + dead),
        ]
        with fleet:
            _of_three(run, fleet, "lossy", faults, {}, network)


def faults_redis(run: Run) -> None:
    """A bad network between the gateway and Redis, under searches in a collection."""
    fleet = Fleet(settings=run.settings)
    with Proxy(fleet.addresses["redis"]) as proxy:
        fleet.via["redis"] = proxy.address
        with fleet:
            fill(fleet)
            rate = _SEARCHES * run.capacity(fleet, "search")
            for place, fault in enumerate(_of_proxy(run, proxy)):
                result = _during(run, fleet, fault, "search", rate, _DEADLINE_S, run.seed + place)
                _searches(run, "faults-redis", fault.name, result, fault.begun, fault.ended)


def _of_proxy(run: Run, proxy: Proxy) -> list[_Fault]:
    begun, ended = run.seconds(_SECONDS) / 4, 5 * run.seconds(_SECONDS) / 8
    return [_Fault(name, partial(proxy.begin, name, _DELAY_S), proxy.end, begun, ended) for name in FAULTS]


def _of_three(
    run: Run, fleet: Fleet, row: str, faults: Sequence[_Fault], asked: dict[str, str], network: Namespace | None = None
) -> None:  # fmt: skip
    """Each fault before one of three embed workers."""
    rate = _OF_THREE * run.capacity(fleet, "embed")
    for place, fault in enumerate(faults):
        lost = network.lost if network else 0
        result = _during(run, fleet, fault, "embed", rate, _OF_THREE_DEADLINE_S, run.seed + place)
        run.line(
            row, f"{fault.name} before one of three",
            {
                **_success(result, fault.begun),
                "longest_s": max(outcome.latency for outcome in result.outcomes),
                **_recovery(result, fault.begun, fault.ended),
                **({"packets": network.passed, "packets_lost": network.lost - lost} if network else {}),
                **common(result),
            },
            {"success": ">= 0.99", **asked, "trouble_after_s": "<= 1", **ALWAYS},
        )  # fmt: skip


def _during(
    run: Run, fleet: Fleet, fault: _Fault, kind: str, rate: float, deadline: float, seed: int
) -> Result:  # fmt: skip
    """A load with the fault in it."""
    steps = [(run.seconds(_SECONDS), rate)]
    with Load(run.plan(fleet, kind, steps=steps, timeout=deadline, seed=seed)) as load:
        load.begin()
        load.at(fault.begun)
        fault.begin()
        load.at(fault.ended)
        fault.end()
        return load.result()


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
