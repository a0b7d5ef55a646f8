"""The commands as a user runs them, on a model of a few thousand weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.engine.models.recipes import RECIPES
from tests.support import checkpoints

ROOT = Path(__file__).resolve().parents[3]
KEYS = ["bench", "case", "subject", "batch_size", "value", "unit", "spread", "format", "default", "loss"]

pytestmark = pytest.mark.timeout(240)


def bench(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture
def tiny(tmp_path: Path) -> list[str | Path]:
    checkpoints.tokenizer().save(str(tmp_path / "tokenizer.json"))
    return ["--model", "tiny", "--tokenizer", tmp_path, "--cache", tmp_path / "cache", "--device", "cpu"]


def rows_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        assert list(row) in (KEYS, KEYS[:7])  # without a format if that is not compared
        least, greatest = row["spread"]
        assert 0 < least <= row["value"] <= greatest
    return rows


def test_embed_compares_subjects_that_agree(tiny: list[str | Path]) -> None:
    subjects = "winnow,recipe,sentence-transformers"
    done = bench(
        "embed", *tiny, "--subjects", subjects, "--cases", "short,mixed", "--texts", "4", "--batch-sizes", "2,4",
        "--formats", "float32,bfloat16", "--repeats", "1", "--json",
    )  # fmt: skip
    rows = rows_of(done)
    assert [row["case"] for row in rows] == ["short"] * 10 + ["mixed"] * 10
    measured = [(row["subject"], row["batch_size"]) for row in rows[10:18]]
    sizes = [("sentence-transformers", 2), ("sentence-transformers", 4)]
    assert measured == [("winnow", 4)] * 2 + [("recipe", 4)] * 2 + sizes * 2
    assert [row["subject"] for row in rows[18:]] == ["gemm"] * 2
    assert {row["unit"] for row in rows} == {"tokens/s"}
    # Each subject first as it starts by itself: transformers takes what the checkpoint holds.
    own = [row["format"] for row in rows[10:] if row["default"]]
    assert own[1:4] == ["bfloat16"] * 3
    for subject in subjects.split(","):
        assert {row["format"] for row in rows[10:] if row["subject"] == subject} == {"float32", "bfloat16"}
    assert [row["format"] for row in rows[18:]] == [row["format"] for row in rows[10:12]]
    losses = {(row["subject"], row["format"]): row["loss"] for row in rows[10:]}
    assert losses["recipe", "float32"] < 1e-12
    assert 1e-7 < losses["winnow", "bfloat16"] < 1e-3
    assert losses["winnow", "float32"] < 1e-5
    assert losses["gemm", "float32"] is None
    for shown in ("winnow ÷ it", "same format", "1 - cos", "bfloat16 *"):
        assert shown in done.stderr


def test_int8_models_say_how_they_are_installed(tiny: list[str | Path]) -> None:
    if (ROOT / ".cache" / "onnx").exists():
        pytest.skip("they are installed here")
    done = bench(
        "embed", *tiny, "--subjects", "winnow,sentence-transformers-onnx", "--formats", "float32", "--cases", "short",
        "--texts", "2", "--repeats", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "without sentence-transformers-onnx: not installed: python -m venv .cache/onnx" in done.stderr


def test_rerank_compares_subjects_that_agree(tiny: list[str | Path]) -> None:
    done = bench(
        "rerank", *tiny, "--cases", "10", "--queries", "2", "--batch-sizes", "8", "--formats", "float32", "--repeats",
        "1", "--json",
    )  # fmt: skip
    rows = rows_of(done)
    assert list(dict.fromkeys(row["subject"] for row in rows)) == ["winnow", "recipe", "sentence-transformers", "gemm"]
    assert {row["unit"] for row in rows} == {"pairs/s"}
    # Told one format, each peer still shows its own as well.
    assert [row["format"] for row in rows if row["subject"] == "recipe"] == ["bfloat16", "float32"]
    assert all(row["loss"] < 5e-2 for row in rows if row["subject"] != "gemm")


def test_engine_latency(tiny: list[str | Path]) -> None:
    rows = rows_of(bench("engine", *tiny, "--calls", "5", "--repeats", "2", "--json"))
    assert [(row["case"], row["unit"]) for row in rows] == [("query-12-p50", "ms"), ("query-12-p99", "ms")] * 2
    assert {row["format"] for row in rows} == {"float32", "bfloat16"}
    assert [row["default"] for row in rows] == [True, True, False, False]


def test_engine_latency_beside_bulk_work(tiny: list[str | Path]) -> None:
    rows = rows_of(bench("engine", *tiny, "--calls", "5", "--repeats", "1", "--bulk-tokens", "300", "--json"))
    beside = [row["case"] for row in rows][2:5]
    assert beside == ["query-12-p95", "query-12-p95-beside-bulk", "bulk-300-step"]


def test_without_a_model_one_line_says_so(tmp_path: Path) -> None:
    done = bench("embed", "--model", tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "contains no checkpoint" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_verify_models_without_the_hub_says_so_in_one_line(tmp_path: Path) -> None:
    done = bench("verify-models", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "Qwen/Qwen3-Embedding-0.6B" in done.stderr


def test_verify_models_goes_on_with_the_next_of_all(tmp_path: Path) -> None:
    done = bench("verify-models", "--all", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 1
    known = [id_ for id_, recipe in RECIPES.items() if recipe.golden is not None]
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == known


def test_verify_models_tells_wrong_numbers(tmp_path: Path) -> None:
    folders = [checkpoints.save(tmp_path / name) for name in ("Qwen3-Embedding-0.6B", "qwen3-reranker-0.6b")]
    done = bench("verify-models", *folders, tmp_path / "nano-embed")
    assert done.returncode == 1
    assert len([line for line in done.stdout.splitlines() if line.startswith("  card ")]) == 6
    assert "card   0.7646  ours " in done.stdout
    assert done.stdout.count("WRONG") >= 5
    assert "nano-embed: no numbers are known" in done.stdout


def test_unknown_subjects_are_refused() -> None:
    done = bench("embed", "--subjects", "winnow,tei")
    assert done.returncode == 2
    assert "tei unknown" in done.stderr


def test_sharing_compares_ways_to_wait(tiny: list[str | Path]) -> None:
    done = bench("sharing", *tiny[:-2], "--documents", "2", "--loops", "0,1", "--repeats", "1", "--json")
    rows = rows_of(done)
    assert [row["case"] for row in rows][::3] == ["beside 0 busy loops", "beside 1 busy loops", "two workers, each"]
    assert [row["subject"] for row in rows[:3]] == ["winnow", "torch's own", "passive"]
