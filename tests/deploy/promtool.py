"""Prometheus's own tool, from the system or unpacked by `make test` (Debian: prometheus)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT

# `make test` unpacks it there if the system has none.
UNPACKED = ROOT / ".cache" / "tools" / "usr" / "bin"
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(UNPACKED))
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (apt-get install prometheus)")


def promtool(*arguments: str | Path) -> str:
    """What it prints; fails with its own words."""
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
