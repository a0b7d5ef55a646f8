"""`bench exactness` on a model of a few thousand weights, in this process."""

import argparse
import json
from pathlib import Path

import pytest

from bench import exactness
from tests.support import checkpoints


@pytest.fixture
def arguments(tmp_path: Path) -> argparse.Namespace:
    checkpoints.tokenizer().save(str(tmp_path / "tokenizer.json"))
    parser = argparse.ArgumentParser()
    exactness.add_arguments(parser)
    words = ["--model", "tiny", "--tokenizer", tmp_path, "--cache", tmp_path / "cache", "--device", "cpu"]
    return parser.parse_args([*map(str, words), "--texts", "6", "--json"])


def test_formats_are_near_float32(arguments: argparse.Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    arguments.dtypes = "float32,bfloat16"
    assert exactness.run(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["of"], row["dtype"], row["case"]) for row in rows] == [
        (of, dtype, case)
        for of in ("embed", "rerank")
        for dtype in ("float32", "bfloat16")
        for case in ("together", "alone")
    ]
    for row in rows:
        assert abs(row["median"]) <= max(row["greatest"], 1e-6)
        assert row["greatest"] <= (1e-5 if row["dtype"] == "float32" else 1e-2)


def test_a_difference_that_rounding_does_not_explain_fails(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exactness, "_MOST", {"embed": 1e-9})
    arguments.dtypes = "bfloat16"
    assert exactness.run(arguments) == 1
    assert "larger than rounding explains" in capsys.readouterr().err
