"""Clients that break every rule, on every port, beside one that keeps them."""

import asyncio
import random
import time
from collections import Counter

from bench.reliability import attacks, figures
from bench.reliability.exact import Exact
from bench.reliability.fleet import Fleet, Usage
from bench.reliability.generator import Load
from bench.reliability.run import ALWAYS, Run, common, milliseconds

_EMBED, _RERANK = "winnow.embed.v1.EmbedService", "winnow.rerank.v1.RerankService"
_SERVED = {"embed": [_EMBED], "rerank": [_RERANK], "gateway": list(attacks.METHODS)}
# No documented end of a call, whatever is sent.
_UNDOCUMENTED = {"CANCELLED", "UNKNOWN", "INTERNAL", "DATA_LOSS"}
_DEADLINE_S = 5.0
_RATE = 10.0
_SETTLED_S = 5.0
_LONGEST_S = 1200.0
_BACK = 1.1  # of what a process holds: after over before


def hostile(run: Run) -> None:
    """`run.requests` requests over the ports of a gateway and two workers."""
    with Fleet(settings=run.settings) as fleet:
        members = [*fleet.workers, *fleet.gateways]
        plan = run.plan(fleet, "embed", steps=[(_LONGEST_S, _RATE)], timeout=_DEADLINE_S, until_told=True)
        with Load(plan) as load:
            load.begin()
            asyncio.run(_attack(fleet, members, len(members) * 60, run.seed))  # what is kept for good is there
            idle_from = load.elapsed() + _SETTLED_S
            load.at(idle_from + run.seconds(5.0))
            before = {name: fleet.usage(name) for name in members}
            begun = load.elapsed()
            with Exact(*(fleet.addresses[name] for name in members)) as exact:
                ends = asyncio.run(_attack(fleet, members, run.requests, run.seed))
            ended = load.elapsed()
            time.sleep(_SETTLED_S)
            after = {name: fleet.usage(name) for name in members}
            crashed = [name for name in members if not fleet.running(name)]
            load.end()
            result = load.result()
    quiet = [one for one in result.outcomes if idle_from <= one.at < begun or ended + 1 <= one.at]
    idle = figures.percentile((one.latency for one in quiet), 99)
    beside = figures.percentile((one.latency for one in result.outcomes if begun <= one.at < ended), 99)
    run.line(
        "hostile", f"{run.requests} requests over all ports",
        {
            "ends": dict(ends.most_common()),
            "undocumented": sum(count for end, count in ends.items() if end.split(" ")[0] in _UNDOCUMENTED),
            "crashes": len(crashed),
            "memory": _growth(before, after, "rss_mb"),
            "descriptors": _growth(before, after, "descriptors"),
            "threads": _growth(before, after, "threads"),
            "seconds": ended - begun,
            "success": figures.success(result.outcomes),
            "exact": exact.answers - exact.other,
            "not_exact": exact.other,
            "exact_failed": exact.failed,
            "p99_idle_ms": milliseconds(idle),
            "p99_beside_ms": milliseconds(beside),
            "p99_ratio": (beside or 0) / (idle or 1),
            **common(result),
        },
        {
            "undocumented": "== 0", "crashes": "== 0", "memory": f"<= {_BACK}", "descriptors": f"<= {_BACK}",
            "threads": f"<= {_BACK}", "success": ">= 1", "exact": ">= 1", "not_exact": "== 0",
            "exact_failed": "== 0", "p99_ratio": "<= 3", **ALWAYS,
        },
    )  # fmt: skip


async def _attack(fleet: Fleet, members: list[str], requests: int, seed: int) -> "Counter[str]":
    """All attacks on each member, one after another, and random bytes to its other port."""
    chance, ends = random.Random(seed), Counter[str]()
    for name in members:
        address, services = fleet.addresses[name], _SERVED[name.rpartition("-")[0]]
        path = attacks.METHODS[services[0]][0]
        each = requests // len(members)
        ends += await attacks.noise(address, services, each // 2, chance)
        ends += await attacks.garbage(address, each // 20, chance)
        ends += await attacks.garbage(fleet.metrics_address(name), each // 20, chance)
        ends += await attacks.frames(address, each // 20, chance)
        ends += await attacks.rapid_reset(address, each // 5, path)
        ends += await attacks.floods(address, each // 30)
        ends += await attacks.bad_gzip(address, each // 20, path, chance)
        ends += await attacks.slow_readers(address, min(100, each // 20), path, 1.0)
    return ends


def _growth(before: dict[str, Usage], after: dict[str, Usage], figure: str) -> float:
    """The greatest of all members."""
    return float(max(getattr(after[name], figure) / getattr(before[name], figure) for name in before))
