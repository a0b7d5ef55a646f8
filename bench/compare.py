"""Common parts of the throughput benchmarks: options, comparison of results, timed rounds."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import checkpoints, report
from bench.ceiling import Ceiling, Shapes, ceiling
from bench.interleave import Run, interleave, rate
from bench.report import WINNOW, Report, Row
from bench.subjects import Computed, Model, Subject
from bench.subjects.start import fitting, started

Numbers = npt.NDArray[np.floating]
Distance = Callable[[Numbers, Numbers], float]
Losses = dict[Subject, float]

FORMATS = ("float32", "bfloat16", "float16", "int8")
# What subjects are told besides what they choose themselves. No one runs float32 on a card.
_TOLD = {"cpu": ["float32", "bfloat16"], "cuda": ["bfloat16"]}


class DisagreementError(Exception):
    """A subject computes different results, so its speed is not comparable."""


def add_arguments(parser: argparse.ArgumentParser, cases: Sequence[str], subjects: Sequence[str]) -> None:
    """Options of a throughput benchmark."""
    checkpoints.add_arguments(parser)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--cases", type=among(cases), default=list(cases), help=f"of {', '.join(cases)}")
    parser.add_argument("--subjects", type=among(subjects), default=list(subjects), help=f"of {', '.join(subjects)}")
    add_formats(parser)
    parser.add_argument(
        "--batch-sizes", type=_sizes, default=[8, 16, 32], help="of peers that ask for one (8,16,32); the best counts"
    )
    parser.add_argument("--batch-tokens", type=int, default=0, help="winnow's step size (default: the engine's own)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5; publish no fewer)")
    report.add_arguments(parser)


def add_formats(parser: argparse.ArgumentParser) -> None:
    """Which number formats a bench measures."""
    parser.add_argument(
        "--formats",
        type=among(FORMATS),
        help=f"number formats besides what a subject chooses itself, of {', '.join(FORMATS)} "
        f"(default: {','.join(_TOLD['cpu'])} on a CPU, {','.join(_TOLD['cuda'])} on CUDA)",
    )


def run_name(bench: str, arguments: argparse.Namespace) -> str:
    """Under which a run is kept: a model other than the default one is part of it."""
    return bench if arguments.model == checkpoints.DEFAULT else f"{bench}-{Path(arguments.model).name}"


def formats_of(arguments: argparse.Namespace, device: str) -> list[str]:
    """What subjects are told."""
    return list(arguments.formats or _TOLD[device])


def device_of(arguments: argparse.Namespace) -> str:
    """`cpu` or `cuda`."""
    import torch

    if arguments.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(arguments.device)


def subjects_of(
    arguments: argparse.Namespace, loaders: dict[str, str], folder: Path, device: str, output: Report
) -> AbstractContextManager[tuple[list[Subject], Callable[[], Model]]]:
    """The subjects that the arguments ask for, and what starts their reference."""
    return started(
        fitting(loaders, folder), arguments.subjects, folder, device, formats_of(arguments, device),
        arguments.batch_sizes, arguments.batch_tokens, output,
    )  # fmt: skip


def ceilings_of(subjects: Sequence[Subject], shapes: Shapes, device: str) -> dict[Subject, Ceiling]:
    """The machine's rate in each of winnow's number formats, for products of these shapes."""
    return {subject: ceiling(shapes, device, subject.format) for subject in subjects if subject.name == WINNOW}


def losses(
    subjects: Sequence[Subject], compute: Callable[[Subject], Numbers], expected: Numbers, distance: Distance,
    tolerance: dict[str, float],
) -> Losses:  # fmt: skip
    """How far each subject's numbers are from the expected ones.

    Raises DisagreementError if they are farther than its format explains. Warms the subjects up, too.
    """
    found: Losses = {}
    for subject in subjects:
        found[subject] = distance(compute(subject), expected)
        if not found[subject] <= tolerance[subject.format]:
            raise DisagreementError(
                f"{subject.name} ({subject.format}, batch size {subject.batch_size}) and transformers in float32 "
                f"disagree by {found[subject]:.2g}"
            )
    return found


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case: what each subject runs, how much of it a run is, and how exact it is."""

    bench: str
    case: str
    unit: str
    work: float  # units a run does
    runs: Sequence[tuple[Subject, Run]]
    losses: Losses
    ceilings: dict[Subject, Ceiling]  # beside winnow's subjects
    flops: Callable[[Computed], float]  # of what winnow computed in its last run


def timed_rows(what: Measurement, repeats: int, output: Report) -> list[Row]:
    """Time all subjects in turn, and the ceilings in the same rounds.

    A ceiling's row, `gemm` or `roofline`, says how many units a second winnow's FLOPs in that format would allow.
    """
    keyed: dict[str, Run] = {
        f"{subject.name} {subject.format} {subject.batch_size}": run for subject, run in what.runs
    } | {f"{limit.name} {subject.format}": limit for subject, limit in what.ceilings.items()}
    with output.progress() as progress:
        task = progress.add_task("", total=repeats * len(keyed))

        def on_run(name: str) -> None:
            progress.update(task, description=f"{what.bench} {what.case}: {name}")
            progress.advance(task)

        seconds = list(interleave(keyed, repeats, on_run).values())
    rows = []

    def add(subject: Subject, name: str, batch_size: int, work: float, spent: list[float], loss: float | None) -> None:
        value, spread = rate(work, spent)
        row = Row(
            what.bench, what.case, name, batch_size, value, what.unit, spread,
            format=subject.format, default=subject.default, loss=loss,
        )  # fmt: skip
        rows.append(row)
        output.add(row.as_dict())

    for (subject, _), spent in zip(what.runs, seconds, strict=False):
        add(subject, subject.name, subject.batch_size, what.work, spent, what.losses[subject])
    for (subject, limit), spent in zip(what.ceilings.items(), seconds[len(what.runs) :], strict=True):
        work = what.work * limit.flops / what.flops(subject.model.computed)
        add(subject, limit.name, limit.rows, work, spent, None)
    return rows


def among(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads a list with commas, all of it `known`."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} unknown: choose from {', '.join(known)}")
        return names

    return parse


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]
