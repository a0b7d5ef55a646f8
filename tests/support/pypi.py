"""Packages of PyPI that only a test needs, installed once into .cache, beside the environment and not into it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def installed(name: str, *packages: str) -> Path:
    """A folder with the packages. Skips the test, by their names, where they cannot be had."""
    folder = ROOT / ".cache" / "tools" / name / "-".join(packages)
    if not (folder / ".installed").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
        done = subprocess.run([*pip, "--target", folder, *packages], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"{' and '.join(packages)} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
        (folder / ".installed").touch()
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a process that uses the packages, without a proxy."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return {**kept, "PYTHONPATH": str(folder), **more}
