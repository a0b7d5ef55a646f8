"""How far a number format on a device is from float32 on the CPU, which is within 1e-5 of transformers."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from bench import checkpoints, compare, report
from bench.report import Report
from bench.shapes import Role
from bench.steps import Steps, documents, pairs
from services.engine.errors import EngineError
from services.engine.types import Ids, Vector

_TEXTS = 48
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
# The most that rounding explains: 1 - cosine of vectors, difference of probabilities.
_MOST: dict[Role, float] = {"embed": 1e-2, "rerank": 5e-2}
_UNITS: dict[Role, str] = {"embed": "1 - cos", "rerank": "probability"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench exactness`."""
    checkpoints.add_arguments(parser)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtypes", default="bfloat16,float16", help="of float32, bfloat16, float16, int8")
    parser.add_argument("--texts", type=int, default=_TEXTS, help=f"and as many pairs (default {_TEXTS})")
    report.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print the table. Fails if a difference is larger than rounding explains."""
    device = compare.device_of(arguments)
    output = Report(arguments, "exactness", device)
    table = Table(title=f"difference to float32, {arguments.model}, {device}", title_justify="left")
    for name in ("of", "dtype", "case", "unit", "median", "greatest"):
        table.add_column(name)
    sound = True
    try:
        for role, allowed in _MOST.items():
            folder = checkpoints.prepare(checkpoints.choice(arguments), role)
            sequences = documents(folder, arguments.texts) if role == "embed" else pairs(folder, arguments.texts)
            expected = Steps(folder, role, "cpu", torch.float32)(sequences)
            for dtype in arguments.dtypes.split(","):
                for case, rows in _runs(folder, role, device, dtype, sequences).items():
                    apart = _distance(role, rows, expected)
                    middle, most = float(np.median(apart)), float(apart.max())
                    output.add(
                        {"bench": "exactness", "model": arguments.model, "of": role, "dtype": dtype, "case": case,
                         "unit": _UNITS[role], "median": middle, "greatest": most}
                    )  # fmt: skip
                    table.add_row(role, dtype, case, _UNITS[role], f"{middle:.1e}", f"{most:.1e}")
                    sound &= most <= allowed  # a NaN is not
    except (checkpoints.ModelMissingError, EngineError) as error:
        print(f"bench exactness: {error}", file=sys.stderr)
        return 1
    output.finish(table)
    if not sound:
        print("bench exactness: a difference is larger than rounding explains", file=sys.stderr)
    return 0 if sound else 1


def _runs(folder: Path, role: Role, device: str, dtype: str, sequences: list[Ids]) -> dict[str, Vector]:
    """The same sequences together and alone; on CUDA then with compiled kernels, alone with graphs."""
    steps = Steps(folder, role, device, _DTYPES[dtype])

    def alone() -> Vector:
        return np.concatenate([steps([ids]) for ids in sequences])

    found = {"together": steps(sequences), "alone": alone()}
    if device == "cuda" and dtype == "bfloat16":
        steps.optimize()
        found |= {"together, compiled": steps(sequences), "alone, compiled": alone()}
    return found


def _distance(role: Role, rows: Vector, expected: Vector) -> Vector:
    """For each text."""
    if role == "embed":
        return np.asarray(1 - (rows.astype(np.float64) * expected).sum(axis=1), np.float32)
    return np.asarray(np.abs(_probability(rows) - _probability(expected))[:, 0], np.float32)


def _probability(logits: Vector) -> Vector:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
