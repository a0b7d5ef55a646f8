"""Reports the figures of a run: as JSON lines, as a table, and as a file in `results/`."""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import machine

RESULTS = Path(__file__).resolve().parent / "results"
WINNOW = "winnow"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `batch_size`: texts or documents that the subject was given to compute at once.

    `format`: what it computed in, where that is measured; `default`: it chose the format itself. `loss`: how far its
    numbers are from those of transformers in float32.
    """

    bench: str
    case: str
    subject: str
    batch_size: int
    value: float  # the median
    unit: str
    spread: tuple[float, float]  # least and greatest
    format: str = ""
    default: bool = False
    loss: float | None = None

    def as_dict(self) -> dict[str, object]:
        """The keys of a line of `--json`."""
        of_format = {
            "format": self.format,
            "default": self.default,
            "loss": self.loss if self.loss is None else _round(self.loss),
        }
        return {
            "bench": self.bench,
            "case": self.case,
            "subject": self.subject,
            "batch_size": self.batch_size,
            "value": _round(self.value),
            "unit": self.unit,
            "spread": [_round(bound) for bound in self.spread],
        } | (of_format if self.format else {})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the output options of every command."""
    parser.add_argument("--json", action="store_true", help="print one JSON object per line instead of the table")
    parser.add_argument("--save", action="store_true", help=f"save the run in {RESULTS.parent.name}/{RESULTS.name}")


class Report:
    """Prints figures as they are measured. Progress, notes and, with `--json`, the table go to standard error."""

    def __init__(self, arguments: argparse.Namespace, bench: str, device: str = "cpu") -> None:
        self._json, self._save, self._bench = bool(arguments.json), bool(arguments.save), bench
        self._facts = machine.facts(device)
        self.place = str(self._facts["accelerator"] or f"cpu ({', '.join(machine.instructions()[:3])})")
        self._lines: list[Mapping[str, object]] = []
        self._notes: list[str] = []
        self._words = sys.argv[1:]
        self.console = Console(stderr=True, highlight=False, width=max(150, Console(stderr=True).width))

    def progress(self) -> Progress:
        """A progress bar on standard error."""
        return Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=self.console, transient=True,
        )  # fmt: skip

    def note(self, text: str) -> None:
        """Prints a note for the reader of the figures."""
        self._notes.append(text)
        self.console.print(text, style="yellow", markup=False)

    def add(self, line: Mapping[str, object]) -> None:
        """Records a figure, and prints it with `--json`."""
        self._lines.append(line)
        if self._json:
            print(json.dumps(line), flush=True)

    def finish(self, table: Table) -> None:
        """Print the table and keep the run where asked to."""
        output = self.console if self._json else Console(highlight=False, width=max(150, Console().width))
        output.print(table)
        if self._save:
            print(f"saved as {self._write()}", file=sys.stderr)

    def _write(self) -> Path:
        name = str(self._facts["accelerator"] or self._facts["processor"])
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        path = RESULTS / f"{self._bench}-{str(self._facts['date'])[:10]}-{slug}.jsonl"
        RESULTS.mkdir(exist_ok=True)
        head = {"command": " ".join(["python -m bench", *self._words]), **self._facts, "notes": self._notes}
        path.write_text("".join(json.dumps(line) + "\n" for line in [head, *self._lines]))
        return path


_FORMATS_CAPTION = (
    "* as it starts by itself. Of the batch sizes tried, each subject's best. winnow ÷ it: Winnow as it starts by "
    "itself; same format: Winnow in the row's format."
)


def table_of(rows: Sequence[Row], title: str, loss: str = "") -> Table:
    """Each subject's best batch size, in each number format if they are known.

    The last columns are winnow's figure, as it starts by itself and in the same format, over the subject's, of the same
    case and unit. `loss` names the column of losses, if there is one.
    """
    formats = any(row.format for row in rows)
    table = Table(title=title, title_justify="left", caption=_FORMATS_CAPTION if formats else None)
    table.caption_justify = "left"
    for name in ("case", "subject", *(["format"] if formats else []), "batch"):
        table.add_column(name)
    more = [*([loss] if loss else []), "winnow ÷ it", *(["same format"] if formats else [])]
    for name in ("median", "unit", "least … greatest", *more):
        table.add_column(name, justify="left" if name == "unit" else "right")
    case = ""
    for row in _best(rows):
        if case and row.case != case:
            table.add_section()
        cells = ["" if row.case == case else row.case, row.subject]
        if formats:
            cells.append(row.format + " *" * row.default)
        cells += [str(row.batch_size), _show(row.value), row.unit, " … ".join(map(_show, row.spread))]
        if loss:
            cells.append("" if row.loss is None else f"{row.loss:.1g}")
        cells.append(_ratio(row, [own for own in rows if own.default or not formats]))
        if formats:
            cells.append(_ratio(row, [own for own in rows if own.format == row.format]))
        table.add_row(*cells, style="bold" if row.subject == WINNOW else None)
        case = row.case
    return table


def _best(rows: Sequence[Row]) -> list[Row]:
    """Of rows that differ in the batch size alone, the one with the highest rate."""
    best: dict[tuple[str, str, str, str], Row] = {}
    for row in rows:
        key = (row.case, row.unit, row.subject, row.format)
        if key not in best or row.value > best[key].value:
            best[key] = row
    return list(best.values())


def _ratio(row: Row, rows: Sequence[Row]) -> str:
    """Winnow's figure among `rows` over this row's; empty if there is none, or if it is this one."""
    own = (other for other in rows if (other.subject, other.case, other.unit) == (WINNOW, row.case, row.unit))
    winnow = next(own, row)
    return "" if winnow is row else f"{winnow.value / row.value:.2f} ×"


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _show(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
