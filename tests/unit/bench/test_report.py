import argparse
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench import report
from bench.report import Report, Row, table_of

ROWS = [
    Row("embed", "mixed", "winnow", 48, 120.0, "tokens/s", (110.0, 130.123456)),
    Row("embed", "mixed", "recipe", 48, 24.0, "tokens/s", (23.0, 25.0)),
]


def of_format(subject: str, batch_size: int, value: float, format: str, *, default: bool, loss: float) -> Row:
    return Row("embed", "mixed", subject, batch_size, value, "tokens/s", (value, value), format, default, loss)


FORMATS = [
    of_format("winnow", 48, 100.0, "float32", default=True, loss=0.0),
    of_format("winnow", 48, 300.0, "bfloat16", default=False, loss=3e-5),
    of_format("recipe", 8, 50.0, "bfloat16", default=True, loss=7e-5),
    of_format("recipe", 16, 75.0, "bfloat16", default=True, loss=6e-5),
    of_format("recipe", 8, 25.0, "float32", default=False, loss=0.0),
]


def shown(rows: list[Row], loss: str = "") -> str:
    console = Console(width=150, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(table_of(rows, "title", loss))
    return console.export_text()


def test_a_line_has_the_promised_keys() -> None:
    assert ROWS[0].as_dict() == {
        "bench": "embed",
        "case": "mixed",
        "subject": "winnow",
        "batch_size": 48,
        "value": 120.0,
        "unit": "tokens/s",
        "spread": [110.0, 130.12],
    }


def test_the_table_says_how_many_times_winnow_is() -> None:
    text = shown(ROWS)
    assert "5.00 ×" in text
    assert text.count("×") == 1


def test_a_line_with_a_number_format_says_which_and_what_it_loses() -> None:
    line = FORMATS[1].as_dict()
    assert list(line)[-3:] == ["format", "default", "loss"]
    assert (line["format"], line["default"], line["loss"]) == ("bfloat16", False, 3e-5)


def test_the_table_shows_each_format_at_its_best_batch_size() -> None:
    lines = [line for line in shown(FORMATS, "1 - cos").splitlines() if "tokens/s" in line]
    cells = [[cell.strip() for cell in line.split("│")[2:-1]] for line in lines]
    assert [row[:4] for row in cells] == [
        ["winnow", "float32 *", "48", "100"],
        ["winnow", "bfloat16", "48", "300"],
        ["recipe", "bfloat16 *", "16", "75"],
        ["recipe", "float32", "8", "25"],
    ]
    # Loss, winnow as it starts by itself over it, winnow in the same format over it.
    assert [row[-3:] for row in cells] == [
        ["0", "", ""],
        ["3e-05", "0.33 ×", ""],
        ["6e-05", "1.33 ×", "4.00 ×"],
        ["0", "4.00 ×", "4.00 ×"],
    ]


def test_json_goes_to_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    output = Report(argparse.Namespace(json=True, save=False), "embed")
    output.add(ROWS[0].as_dict())
    output.note("without infinity: it is not here")
    output.finish(table_of(ROWS, "title"))
    captured = capsys.readouterr()
    assert [json.loads(line) for line in captured.out.splitlines()] == [ROWS[0].as_dict()]
    assert "without infinity" in captured.err
    assert "title" in captured.err


def test_a_kept_run_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    output = Report(argparse.Namespace(json=False, save=True), "embed")
    output.add(ROWS[0].as_dict())
    output.finish(table_of(ROWS, "title"))
    [file] = (tmp_path / "results").iterdir()
    assert file.name.startswith("embed-20")
    head, row = map(json.loads, file.read_text().splitlines())
    assert {"command", "date", "processor", "cores", "instructions", "load", "commit", "torch"} <= head.keys()
    assert row == ROWS[0].as_dict()
    assert str(file) in capsys.readouterr().err
