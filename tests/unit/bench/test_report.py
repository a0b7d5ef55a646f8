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


def shown(rows: list[Row]) -> str:
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(table_of(rows, "title"))
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
    assert {"command", "date", "processor", "cores", "load", "commit", "torch"} <= head.keys()
    assert row == ROWS[0].as_dict()
    assert str(file) in capsys.readouterr().err
