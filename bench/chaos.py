"""Measures how the system holds under load and faults: goodput beyond the capacity, frozen replicas, a lost Redis.

All processes run on loopback. Their models wait instead of computing (`bench/reliability/paced_worker.py`), so that the
rows tell how calls are queued, shared out and refused, whatever the machine; `overload-real` computes.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import grpc
from rich.table import Table

from bench import machine
from bench.reliability.fleet import Fleet
from bench.reliability.rows import callers, dependencies, hostile, overload, quotas, replicas, rolling, soak
from bench.reliability.run import Run
from bench.report import Report
from deploy.local.process import StartError
from services.engine import host

ROWS: dict[str, Callable[[Run], None]] = {
    "overload": overload.overload,
    "overload-real": overload.overload_real,
    "step": overload.step,
    "burst": overload.burst,
    "kill": replicas.kill,
    "freeze": replicas.freeze,
    "slow": replicas.slow,
    "rolling": rolling.rolling,
    "redis-freeze": dependencies.redis_freeze,
    "faults-worker": dependencies.faults_worker,
    "lossy": dependencies.lossy,
    "faults-redis": dependencies.faults_redis,
    "empty-texts": callers.empty_texts,
    "greedy": callers.greedy,
    "quotas": quotas.quotas,
    "hostile": hostile.hostile,
    "soak": soak.soak,
}
_ONLY_BY_NAME = {"soak"}
_WITH_TLS = ("overload", "overload-real", "step", "burst", "kill", "freeze", "rolling", "redis-freeze", "soak")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench chaos`."""
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)} (default: all but soak)"
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, help="length of each load (default 4 to 12 s; of soak 1800 s; publish 60 s or more)"
    )
    parser.add_argument("--kinds", default="embed,rerank,inline,search", help="kinds of calls of `overload`")
    parser.add_argument("--factors", default="2,4", help="multiples of the capacity of `overload` (default 2,4)")
    parser.add_argument("--deadlines", default="1,5", help="deadlines in seconds of `overload` (default 1,5)")
    parser.add_argument("--repeats", type=int, default=1, help="run everything so many times (default 1)")
    parser.add_argument("--texts", type=int, default=30_000_000, help="empty texts in a message (default 30000000)")
    parser.add_argument("--requests", type=int, default=2_000, help="hostile ones (default 2000; publish 50000)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the processes, to compare with"
    )
    parser.add_argument(
        "--tls", action="store_true", help="with TLS and a token everywhere; certificates are renewed meanwhile"
    )
    parser.add_argument("--save", action="store_true", help="save the run in bench/results")


def run(arguments: argparse.Namespace) -> int:
    """Runs the rows, prints a JSON line for each case and then a table. Status 1 if a row could not run."""
    known = [name for name in ROWS if name in _WITH_TLS or not arguments.tls]
    names = arguments.rows or [name for name in known if name not in _ONLY_BY_NAME]
    if unknown := [name for name in names if name not in known]:
        of = " with --tls" if arguments.tls else ""
        print(f"bench chaos: {', '.join(unknown)} unknown{of}: {', '.join(known)}", file=sys.stderr)
        return 2
    output = Report(argparse.Namespace(json=True, save=arguments.save), "reliability")
    where = f"{machine.processor()}, {host.cpus()} cores"
    lines: list[Mapping[str, object]] = []
    broken = 0
    for repeat in range(1, arguments.repeats + 1):

        def emit(line: Mapping[str, object], repeat: int = repeat) -> None:
            date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            lines.append({**line, "run": repeat, "date": date, "machine": where, "tls": arguments.tls})
            output.add(lines[-1])

        one = Run(
            emit, output.note, arguments.seconds, dict(word.split("=", 1) for word in arguments.set),
            seed=1000 * repeat, texts=arguments.texts, requests=arguments.requests,
            kinds=tuple(arguments.kinds.split(",")), factors=_numbers(arguments.factors),
            deadlines=_numbers(arguments.deadlines), start=partial(Fleet, secure=arguments.tls),
        )  # fmt: skip
        for name in names:
            try:
                ROWS[name](one)
            except (StartError, RuntimeError, OSError, grpc.RpcError) as error:  # the other rows tell what they can
                broken += 1
                output.note(f"{name} could not run: {error}")
    output.finish(_table(lines))
    return 1 if broken else 0


def _numbers(words: str) -> tuple[float, ...]:
    return tuple(map(float, words.split(",")))


def _table(lines: Sequence[Mapping[str, object]]) -> Table:
    """What is asked beside what was measured."""
    table = Table(title="chaos", title_justify="left")
    for name in ("run", "row", "case", "figure", "asked", "measured", ""):
        table.add_column(name)
    for line in lines:
        asked, measured, missed = line["asked"], line["measured"], line["missed"]
        assert isinstance(asked, dict)
        assert isinstance(measured, dict)
        assert isinstance(missed, list)
        for place, (name, bound) in enumerate(asked.items()):
            cells = [str(line[key]) for key in ("run", "row", "case")] if place == 0 else [""] * 3
            table.add_row(*cells, name, bound, str(measured.get(name)), "missed" if name in missed else "")
        table.add_section()
    return table
