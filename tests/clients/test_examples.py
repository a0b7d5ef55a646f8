"""The README's clients, run as its readers run them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.stack import Stack

CLIENTS = Path(__file__).resolve().parents[2] / "clients"


def run(command: list[str], folder: Path, address: str, timeout: float = 120) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "WINNOW_ADDRESS": address, "PYTHONPATH": str(CLIENTS.parent)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(output: str) -> None:
    lines = output.splitlines()
    assert "shutil.rmtree" in lines[0], output
    assert [line for line in lines if line == "64 dimensions, length 1.0000"] == ["64 dimensions, length 1.0000"] * 3
    assert "texts" in lines[-1], output


def test_python_example(stack: Stack) -> None:
    check(run([sys.executable, "example.py"], CLIENTS / "python", stack.addresses["gateway"]))


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node is not installed")
@pytest.mark.timeout(240)
def test_typescript_example(stack: Stack) -> None:
    folder = CLIENTS / "typescript"
    run(["npm", "ci", "--ignore-scripts", "--no-progress"], folder, "")
    run(["npm", "run", "--silent", "build"], folder, "")
    check(run(["node", "dist/example.js"], folder, stack.addresses["gateway"]))
