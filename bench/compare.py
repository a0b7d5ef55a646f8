"""Common parts of the throughput benchmarks: options, comparison of results, timed rounds."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bench import checkpoints, report
from bench.ceiling import Ceiling
from bench.interleave import Run, interleave, rate
from bench.report import Report, Row
from bench.subjects import Computed
from services.engine.host import cpus

Numbers = npt.NDArray[np.floating]
Distance = Callable[[Numbers, Numbers], float]


class Subject(Protocol):
    """The subject and case of a row."""

    name: str
    batch_size: int


@runtime_checkable
class Measured(Protocol):
    """A subject that counts the tokens that it computes."""

    computed: Computed


class DisagreementError(Exception):
    """A subject computes different results, so its speed is not comparable."""


def add_arguments(parser: argparse.ArgumentParser, cases: Sequence[str], subjects: Sequence[str]) -> None:
    """Options of a throughput benchmark."""
    checkpoints.add_arguments(parser)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--cases", type=_among(cases), default=list(cases), help=f"of {', '.join(cases)}")
    parser.add_argument("--subjects", type=_among(subjects), default=list(subjects), help=f"of {', '.join(subjects)}")
    parser.add_argument("--batch-sizes", type=_sizes, default=[8, 16, 32], help="of peers that need one (8,16,32)")
    parser.add_argument("--batch-tokens", type=int, default=0, help="winnow's step size (default: the engine's)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5; publish no fewer)")
    report.add_arguments(parser)


def device_of(arguments: argparse.Namespace) -> str:
    """`cpu` or `cuda`."""
    import torch

    if arguments.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(arguments.device)


def settle() -> None:
    """Gives the subjects in this process as many threads as the engine uses, and disables the peers' progress bars and
    hints."""
    import logging
    import warnings

    import torch
    import transformers

    torch.set_num_threads(cpus())

    hush: Any = transformers.utils.logging
    hush.disable_progress_bar()
    hush.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"transformers|sentence_transformers|torch")


def computed_by(subjects: Sequence[object]) -> Computed | None:
    """Winnow's counter of computed tokens, if winnow is one of the subjects."""
    return next((subject.computed for subject in subjects if isinstance(subject, Measured)), None)


def check(
    outputs: Sequence[tuple[Subject, Numbers]], distance: Callable[[Numbers, Numbers], float], most: float
) -> None:
    """Raises DisagreementError if a subject's results differ from those of the first by more than `most`."""
    _, expected = outputs[0]
    for subject, numbers in outputs[1:]:
        if not (found := distance(numbers, expected)) <= most:
            raise DisagreementError(
                f"{subject.name} (batch size {subject.batch_size}) and {outputs[0][0].name} disagree by {found:.2g}"
            )


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case: the work of each subject, and the number of units per run."""

    bench: str
    case: str
    unit: str
    work: float  # units a run does
    runs: Sequence[tuple[Subject, Run]]
    ceiling: Ceiling | None
    computed: Callable[[], float]  # FLOPs that winnow did in its last run; asked for only with a ceiling


def timed_rows(what: Measurement, repeats: int, output: Report) -> list[Row]:
    """Times all subjects in turn, and the upper bound in the same rounds.

    The row of the upper bound, `gemm` or `roofline`, is the number of units per second that winnow's FLOPs would allow.
    """
    keyed: dict[str, Run] = {f"{subject.name} {subject.batch_size}": run for subject, run in what.runs}
    if what.ceiling:
        keyed[what.ceiling.name] = what.ceiling
    with output.progress() as progress:
        task = progress.add_task("", total=repeats * len(keyed))

        def on_run(name: str) -> None:
            progress.update(task, description=f"{what.bench} {what.case}: {name}")
            progress.advance(task)

        seconds = interleave(keyed, repeats, on_run)
    measured = [(subject.name, subject.batch_size, what.work) for subject, _ in what.runs]
    if what.ceiling:
        work = what.work * what.ceiling.flops / what.computed()
        measured.append((what.ceiling.name, what.ceiling.rows, work))
    rows = []
    for (name, batch_size, work), spent in zip(measured, seconds.values(), strict=True):
        value, spread = rate(work, spent)
        rows.append(Row(what.bench, what.case, name, batch_size, value, what.unit, spread))
        output.add(rows[-1].as_dict())
    return rows


def _among(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} unknown: choose from {', '.join(known)}")
        return names

    return parse


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]
