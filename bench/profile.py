"""Where the time of a step goes: a full one, and one short query."""

import argparse
import sys
import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench import checkpoints, compare, report
from bench.report import WINNOW, Report, Row, table_of
from bench.steps import Steps, documents
from services.engine.errors import EngineError
from services.engine.types import Ids

_FULL = {"cpu": 2000, "cuda": 16384}  # the engine's own step sizes
_SHORT = 12
_REPEATS = 5
_ROWS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench profile`."""
    checkpoints.add_arguments(parser)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--tokens", type=int, default=0, help="of the full step (default: the engine's own)")
    report.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Profile, print the two tables."""
    device = compare.device_of(arguments)
    output = Report(arguments, "profile", device)
    try:
        folder = checkpoints.prepare(checkpoints.choice(arguments), "embed")
        steps = Steps(folder, "embed", device, torch.bfloat16 if device == "cuda" else torch.float32)
    except (checkpoints.ModelMissingError, EngineError) as error:
        print(f"bench profile: {error}", file=sys.stderr)
        return 1
    full = _of_tokens(documents(folder, 512), arguments.tokens or _FULL[device])
    steps.optimize()
    rows = []
    for case, sequences in (("full", full), ("short", _of_tokens(full, _SHORT))):
        milliseconds = _milliseconds(steps, sequences)
        tokens = sum(map(len, sequences))
        case, spread = f"{case}-{tokens}", (min(milliseconds), max(milliseconds))
        rows.append(Row("profile", case, WINNOW, len(sequences), float(np.median(milliseconds)), "ms", spread))
        output.add(rows[-1].as_dict())
        print(case, _operators(steps, sequences, device), sep="\n", file=sys.stderr)
    output.finish(table_of(rows, f"profile, {folder.name}, {device}"))
    return 0


def _of_tokens(sequences: list[Ids], tokens: int) -> list[Ids]:
    """As many of the sequences as make `tokens`, the last one cut."""
    chosen: list[Ids] = []
    for ids in sequences:
        left = tokens - sum(map(len, chosen))
        if left <= 0:
            break
        chosen.append(ids[:left])
    return chosen


def _milliseconds(steps: Steps, sequences: list[Ids]) -> list[float]:
    """Of some steps, after one that warms up."""
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        steps(sequences)
        times.append(1000 * (time.perf_counter() - start))
    return times[1:]


def _operators(steps: Steps, sequences: list[Ids], device: str) -> str:
    """torch's table of one step."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiled:
        steps(sequences)
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    return str(profiled.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=60))
