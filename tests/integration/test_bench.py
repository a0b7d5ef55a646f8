"""The benches that need running services, in small."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.local.stack import ROOT, Stack

pytestmark = pytest.mark.timeout(180)


def bench(*words: str | Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "bench", *map(str, words), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_quality_of_every_stage(stack: Stack, tmp_path: Path) -> None:
    lines = (ROOT / "training" / "heldout" / "debian.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "set.jsonl").write_text("\n".join(lines[:60]))
    rows = bench("quality", tmp_path / "set.jsonl", "--address", stack.addresses["gateway"], "--queries", "4")
    assert all(list(row) == ["bench", "stage", "width", "metric", "value"] for row in rows)
    values = {(row["stage"], row["width"], row["metric"]): row["value"] for row in rows}
    stages = [stage for stage, _, _ in values]
    assert list(dict.fromkeys(stages)) == ["bm25", "first", "rerank", "blend"]
    widths = sorted({width for stage, width, _ in values if stage == "first"})
    assert len(widths) > 1
    # Reranking moves documents within the candidates, so it finds what the first stage found.
    found = [values[stage, widths[-1], "recall@50"] for stage in ("first", "rerank", "blend")]
    assert found[0] == found[1] == found[2] > 0
    assert all(0 <= value <= 1 for value in values.values())


def test_a_warm_cache_beside_an_echo_server(stack: Stack) -> None:
    rows = bench(
        "gateway", "--address", stack.addresses["gateway"], "--texts", "20", "--seconds", "0.3", "--repeats", "2"
    )
    assert [(row["subject"], row["unit"]) for row in rows] == [
        (subject, unit) for unit in ("requests/s", "ms p50", "ms p99") for subject in ("winnow", "echo")
    ]
    assert all(row["value"] > 0 for row in rows)


def test_invariance_of_the_nano_pair() -> None:
    rows = bench(
        "invariance", "--models", "nano", "--device", "cpu", "--queries", "3", "--documents", "20", "--candidates", "4"
    )
    kinds = [("float32", ""), ("bfloat16", ""), ("bfloat16", ", from float32")]
    assert [(row["format"], row["by"]) for row in rows] == [
        (format, by + compared) for format, compared in kinds for by in ("embed", "rerank")
    ]
    for row in rows:
        assert row["queries"] == 3
        assert 0 <= row["members"] <= row["order"] <= 3
    # In float32 a text's numbers do differ between steps, but by less than what parts two documents.
    assert rows[0]["difference"] < 1e-5
