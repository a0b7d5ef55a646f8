"""What the command does with its rows. The rows themselves run in tests/integration/test_chaos.py."""

import argparse
import json

import pytest

from bench import chaos
from bench.reliability.run import Run
from deploy.local.process import StartError


def status(*words: str) -> int:
    parser = argparse.ArgumentParser()
    chaos.add_arguments(parser)
    return chaos.run(parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sharks"], "bench chaos: sharks unknown: overload, "),
        (["kill", "slow", "--tls"], "bench chaos: slow unknown with --tls: overload, "),
    ],
)
def test_unknown_rows_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*words) == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_line_says_when_and_where_it_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(chaos.ROWS, "kill", lambda run: run.line("kill", "one", {"success": 0.5}, {"success": ">= 1"}))
    assert status("kill", "--repeats", "2", "--tls") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["run"] for line in lines] == [1, 2]
    assert list(lines[0])[-4:] == ["run", "date", "machine", "tls"]
    assert (lines[0]["missed"], lines[0]["tls"]) == (["success"], True)


def test_a_row_that_cannot_run_leaves_the_others_to_be_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(run: Run) -> None:
        raise StartError("no Redis")

    monkeypatch.setitem(chaos.ROWS, "kill", broken)
    monkeypatch.setitem(chaos.ROWS, "freeze", lambda run: run.line("freeze", "one", {}, {}))
    assert status("kill", "freeze") == 1
    found = capsys.readouterr()
    assert json.loads(found.out)["row"] == "freeze"
    assert "kill could not run: no Redis" in found.err
