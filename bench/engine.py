"""Latency of one short query in the engine, with nothing else to do, and beside bulk work, in each number format."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from tokenizers import Tokenizer

from bench import checkpoints, compare, report
from bench.report import WINNOW, Report, Row, table_of
from bench.subjects.winnow import settings
from bench.texts import Writer
from services.engine.engine import EmbedEngine
from services.engine.errors import EngineError
from services.engine.types import InputType, Priority

_TOKENS = 12  # of the caller's text; the query prompt comes on top
_WARM_UP = 20
_BULK_TEXTS = 8  # of one bulk request
_STEPS = 3
_QUERIES_BESIDE = 40  # of a round: each may wait for a step of the model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench engine`."""
    checkpoints.add_arguments(parser)
    parser.set_defaults(model="nano")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    compare.add_formats(parser)
    parser.add_argument("--calls", type=int, default=200, help="queries of a round, one after the other (default 200)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument(
        "--bulk-tokens", type=int, default=0, help="also measure during bulk requests with texts of this many tokens"
    )
    report.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints the table."""
    device = compare.device_of(arguments)
    output = Report(arguments, "engine", device)
    rows: list[Row] = []
    try:
        folder = checkpoints.prepare(checkpoints.choice(arguments), "embed")
        default = None
        for format in [None, *compare.formats_of(arguments, device)]:
            if format and format == default:
                continue
            engine = EmbedEngine.load(settings(folder, device, format=format))
            default = default or engine.info.dtype
            rows += _rows(arguments, engine, folder, default=format is None)
    except (checkpoints.ModelMissingError, EngineError) as error:
        print(f"bench engine: {error}", file=sys.stderr)
        return 1
    for row in rows:
        output.add(row.as_dict())
    output.finish(table_of(rows, f"engine, {folder.name}, {output.place}"))
    return 0


def _rows(arguments: argparse.Namespace, engine: EmbedEngine, folder: Path, *, default: bool) -> list[Row]:
    """Of one engine. `default`: it chose its number format itself."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    writer = Writer(seed=3)

    def count(piece: str) -> int:
        return len(tokenizer.encode(piece, add_special_tokens=False).ids)

    queries = [writer.of_tokens(_TOKENS, count) for _ in range(arguments.calls)]
    bulk = [writer.of_tokens(arguments.bulk_tokens, count) for _ in range(_BULK_TEXTS if arguments.bulk_tokens else 0)]
    measured = asyncio.run(_measure(engine, queries, bulk, arguments.repeats))
    figures = [(f"query-{_TOKENS}-p{percent}", measured.idle, percent) for percent in (50, 99)]
    if bulk:
        figures.append((f"query-{_TOKENS}-p95", measured.idle, 95))
        figures.append((f"query-{_TOKENS}-p95-beside-bulk", measured.beside, 95))
        figures.append((f"bulk-{arguments.bulk_tokens}-step", measured.steps, 50))
    return [_row(*figure, format=engine.info.dtype, default=default) for figure in figures]


@dataclass(frozen=True, slots=True)
class Measured:
    """Milliseconds by round: of queries alone, of queries during bulk work, of one bulk text alone."""

    idle: list[list[float]]
    beside: list[list[float]]
    steps: list[list[float]]


async def _measure(engine: EmbedEngine, queries: Sequence[str], bulk: Sequence[str], repeats: int) -> Measured:
    engine.start()
    try:
        for query in queries[:_WARM_UP]:
            await engine.embed([query], input_type=InputType.QUERY)
        idle = [[await _milliseconds(engine, query) for query in queries] for _ in range(repeats)]
        if not bulk:
            return Measured(idle, [], [])
        steps = [[await _milliseconds(engine, text, Priority.BULK) for text in bulk[:_STEPS]] for _ in range(repeats)]
        return Measured(idle, [await _beside(engine, queries, bulk) for _ in range(repeats)], steps)
    finally:
        engine.close()


async def _beside(engine: EmbedEngine, queries: Sequence[str], bulk: Sequence[str]) -> list[float]:
    """Milliseconds of queries, one after the other, during a series of bulk requests."""

    async def flood() -> None:
        while True:
            await engine.embed(bulk, priority=Priority.BULK)

    flooding = asyncio.create_task(flood())
    try:
        while not engine.stats().inflight_tokens:  # noqa: ASYNC110 - the engine has no event for it
            await asyncio.sleep(0)
        return [await _milliseconds(engine, query) for query in queries[:_QUERIES_BESIDE]]
    finally:
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def _milliseconds(engine: EmbedEngine, text: str, priority: Priority = Priority.INTERACTIVE) -> float:
    start = time.perf_counter()
    input_type = InputType.QUERY if priority is Priority.INTERACTIVE else InputType.DOCUMENT
    await engine.embed([text], input_type=input_type, priority=priority)
    return 1000 * (time.perf_counter() - start)


def _row(case: str, rounds: Sequence[Sequence[float]], percent: float, *, format: str, default: bool) -> Row:
    found = [float(np.percentile(times, percent)) for times in rounds]
    spread = (min(found), max(found))
    return Row("engine", case, WINNOW, 1, median(found), "ms", spread, format=format, default=default)
