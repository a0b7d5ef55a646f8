"""`bench/gpu.sh` without a card: every part in small, and what it says of parts that fail."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.shapes import SHAPES
from deploy.local.stack import ROOT

SCRIPT = ROOT / "bench" / "gpu.sh"

pytestmark = pytest.mark.timeout(500)  # seven processes that import transformers; under a minute on a quiet machine


def gpu(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SCRIPT), *map(str, words)],
        env={**os.environ, "PYTHON": sys.executable, "OTHER_PYTHON": "", **environment},
        capture_output=True,
        text=True,
        timeout=490,
        check=False,
    )


def test_every_part_runs_in_small_and_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    done = gpu("--dry-run", tmp_path, OTHER_PYTHON="/bin/false")
    logs = {log.stem: log.read_text() for log in tmp_path.glob("*.log")}
    last = done.stdout.splitlines()[-1]
    ran, missed = last.removeprefix("ran: ").split("; did not: ")
    assert missed == "torch-missing: exit status 1", logs
    *others, torch = ran.split()
    parts = ["exactness", "profile", "embed", "rerank"]
    assert others == ["machine", "tests", *(f"{part}-tiny-1layers" for part in parts)]
    assert torch.startswith("torch-")
    assert done.returncode == 1
    assert done.stderr == ""
    assert (tmp_path / "summary.txt").read_text() == done.stdout
    assert "needs a CUDA device" in logs["tests"]
    for name in ("embed", "rerank", "exactness", "profile", "torch"):
        figures = [json.loads(line) for line in logs[name].splitlines() if line.startswith("{")]
        assert {figure["bench"] for figure in figures} == {"embed" if name == "torch" else name}
    assert {"winnow", "recipe", "sentence-transformers"} <= set(re.findall(r'"subject": "([^"]+)"', logs["embed"]))


def test_a_part_for_which_no_time_is_left_is_named(tmp_path: Path) -> None:
    done = gpu("--dry-run", tmp_path, TOTAL_S="1")
    ran, missed = done.stdout.splitlines()[-1].split("; did not: ")
    assert ran == "ran:"
    assert "tests: no time left; exactness-tiny-1layers: no time left" in missed
    assert missed.endswith("torch: OTHER_PYTHON names no second torch")
    assert done.returncode == 1


def test_without_a_card_it_says_so_at_once(tmp_path: Path) -> None:
    done = gpu(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "--dry-run" in done.stderr
    assert done.stdout == ""


def test_its_models_are_known_and_its_limits_fit_its_time() -> None:
    text = SCRIPT.read_text()
    small = re.findall(r"small=(\S+)", text)[0]
    models = re.findall(r'models="([^"]+)"', text)[0].replace("$small", small).split()
    assert {re.sub(r"-\d+layers$", "", model) for model in models} <= set(SHAPES)
    # Limits in the order of the parts; those of the loops count once for each round.
    fixed = sum(map(int, re.findall(r"^(?:part \w+ \w+|limit_s=)\W*(\d+)", text, re.MULTILINE)))
    looped = sum(map(int, re.findall(r"^    limit_s=(\d+)", text, re.MULTILINE)))
    torch = 2 * int(re.findall(r'"torch-\S+" (\d+)', text)[0])
    total = int(re.findall(r"TOTAL_S:-\$\(\((\d+)", text)[0])
    assert fixed + len(models) * looped + torch <= total < 540
