"""Latency of one short query in the engine: text in, vector out, nothing else to do."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from statistics import median

import numpy as np
from tokenizers import Tokenizer

from bench import checkpoints, compare, report
from bench.report import WINNOW, Report, Row, table_of
from bench.subjects.winnow import settings
from bench.texts import Writer
from services.engine.engine import EmbedEngine
from services.engine.errors import EngineError
from services.engine.types import InputType

_TOKENS = 12  # of the caller's text; the query prompt comes on top
_WARM_UP = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench engine`."""
    checkpoints.add_arguments(parser)
    parser.set_defaults(model="nano")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--calls", type=int, default=200, help="queries of a round, one after the other (default 200)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    report.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table."""
    device = compare.device_of(arguments)
    output = Report(arguments, "engine", device)
    try:
        folder = checkpoints.prepare(checkpoints.choice(arguments), "embed")
        engine = EmbedEngine.load(settings(folder, device))
    except (checkpoints.ModelMissingError, EngineError) as error:
        print(f"bench engine: {error}", file=sys.stderr)
        return 1
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    writer = Writer(seed=3)
    queries = [
        writer.of_tokens(_TOKENS, lambda piece: len(tokenizer.encode(piece, add_special_tokens=False).ids))
        for _ in range(arguments.calls)
    ]
    rounds = asyncio.run(_rounds(engine, queries, arguments.repeats))
    rows = [_row(f"query-{_TOKENS}-p{percent}", rounds, percent) for percent in (50, 99)]
    for row in rows:
        output.add(row.as_dict())
    output.finish(table_of(rows, f"engine, {folder.name}, {device}"))
    return 0


async def _rounds(engine: EmbedEngine, queries: Sequence[str], repeats: int) -> list[list[float]]:
    """Milliseconds of each query, by round."""
    engine.start()
    try:
        for query in queries[:_WARM_UP]:
            await engine.embed([query], input_type=InputType.QUERY)
        return [[await _milliseconds(engine, query) for query in queries] for _ in range(repeats)]
    finally:
        engine.close()


async def _milliseconds(engine: EmbedEngine, query: str) -> float:
    start = time.perf_counter()
    await engine.embed([query], input_type=InputType.QUERY)
    return 1000 * (time.perf_counter() - start)


def _row(case: str, rounds: Sequence[Sequence[float]], percent: float) -> Row:
    found = [float(np.percentile(times, percent)) for times in rounds]
    return Row("engine", case, WINNOW, 1, median(found), "ms", (min(found), max(found)))
