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
    """One figure. `batch_size`: number of texts or documents that the subject computes at once."""

    bench: str
    case: str
    subject: str
    batch_size: int
    value: float  # the median
    unit: str
    spread: tuple[float, float]  # least and greatest

    def as_dict(self) -> dict[str, object]:
        """The object in a line of `--json`."""
        return {
            "bench": self.bench,
            "case": self.case,
            "subject": self.subject,
            "batch_size": self.batch_size,
            "value": _round(self.value),
            "unit": self.unit,
            "spread": [_round(bound) for bound in self.spread],
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the output options of every command."""
    parser.add_argument("--json", action="store_true", help="print one JSON object per line instead of the table")
    parser.add_argument("--save", action="store_true", help=f"save the run in {RESULTS.parent.name}/{RESULTS.name}")


class Report:
    """Prints figures as they are measured. Progress, notes and, with `--json`, the table go to standard error."""

    def __init__(self, arguments: argparse.Namespace, bench: str, device: str = "cpu") -> None:
        self._json, self._save, self._bench = bool(arguments.json), bool(arguments.save), bench
        self._facts = machine.facts(device)
        self._lines: list[Mapping[str, object]] = []
        self._notes: list[str] = []
        self._words = sys.argv[1:]
        self.console = Console(stderr=True, highlight=False, width=max(110, Console(stderr=True).width))

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
        """Prints the table, and saves the run with `--save`."""
        output = self.console if self._json else Console(highlight=False, width=max(110, Console().width))
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


def table_of(rows: Sequence[Row], title: str) -> Table:
    """The table of all rows. The last column is winnow's figure / the subject's, for the same case and unit."""
    table = Table(title=title, title_justify="left")
    for name in ("case", "subject", "batch"):
        table.add_column(name)
    for name in ("median", "unit", "least … greatest", "winnow ÷ it"):
        table.add_column(name, justify="left" if name == "unit" else "right")
    own = {(row.case, row.unit): row.value for row in rows if row.subject == WINNOW}
    case = ""
    for row in rows:
        if case and row.case != case:
            table.add_section()
        winnow = own.get((row.case, row.unit))
        ratio = "" if row.subject == WINNOW or winnow is None else f"{winnow / row.value:.2f} ×"
        least, greatest = row.spread
        table.add_row(
            "" if row.case == case else row.case, row.subject, str(row.batch_size), _show(row.value), row.unit,
            f"{_show(least)} … {_show(greatest)}", ratio,
            style="bold" if row.subject == WINNOW else None,
        )  # fmt: skip
        case = row.case
    return table


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _show(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
