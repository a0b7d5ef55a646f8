"""A rerank request on cores that other work wants too, by how the kernels' threads wait for one another."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench import checkpoints, report
from bench.interleave import rate
from bench.report import WINNOW, Report, Row, table_of
from bench.subjects.sharing import Worker
from bench.texts import Writer

_DOCUMENT_WORDS = 90
# What the environment says before torch is loaded; as a worker starts by itself, openmp.configure says it.
_POLICIES: dict[str, dict[str, str] | None] = {
    WINNOW: None,
    "torch's own": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench sharing`."""
    checkpoints.add_arguments(parser)
    parser.set_defaults(model="nano")
    parser.add_argument("--documents", type=int, default=40, help="of a request, some 120 tokens each (default 40)")
    parser.add_argument("--loops", type=_counts, default=[0, 1, 2, 4], help="busy loops beside it (0,1,2,4)")
    parser.add_argument("--spins", type=_counts, default=[], help="further policies: values of GOMP_SPINCOUNT")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5)")
    report.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table."""
    output = Report(arguments, "sharing")
    try:
        folder = checkpoints.prepare(checkpoints.choice(arguments), "rerank")
    except checkpoints.ModelMissingError as error:
        print(f"bench sharing: {error}", file=sys.stderr)
        return 1
    writer = Writer(seed=4)
    documents = [writer.of_words(_DOCUMENT_WORDS) for _ in range(arguments.documents)]
    policies = _POLICIES | {f"{spins} spins": {"GOMP_SPINCOUNT": str(spins)} for spins in arguments.spins}
    rows: list[Row] = []
    with ExitStack() as children:
        workers = {name: children.enter_context(Worker(folder, policy)) for name, policy in policies.items()}
        second = {name: children.enter_context(Worker(folder, policy)) for name, policy in policies.items()}
        for count in arguments.loops:
            with _busy(count):
                rows += _rows(f"beside {count} busy loops", workers, {}, documents, arguments.repeats)
        rows += _rows("two workers, each", workers, second, documents, arguments.repeats)
    for row in rows:
        output.add(row.as_dict())
    output.finish(table_of(rows, f"sharing, {folder.name}, {os.cpu_count()} processors"))
    return 0


def _rows(
    case: str, workers: dict[str, Worker], second: dict[str, Worker], documents: Sequence[str], repeats: int
) -> list[Row]:
    """A row per policy. With `second`, two workers of the policy have the same request at the same time."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            both = [worker, second[name]] if second else [worker]
            for one in both:
                one.ask(documents)
            seconds[name] += [one.seconds() for one in both]
    rates = {name: rate(len(documents), times) for name, times in seconds.items()}
    return [
        Row("sharing", case, name, len(documents), value, "pairs/s", spread) for name, (value, spread) in rates.items()
    ]


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but want a core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
