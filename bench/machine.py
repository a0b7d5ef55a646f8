"""The environment of a run: machine, versions and commit."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from services.engine import host

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "grpcio", "redis")


def processor() -> str:
    """The processor's name, as reported by the system."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return " ".join((match.group(1) if match else platform.processor() or platform.machine()).split())


# Instructions that multiply matrices or many numbers at once, the fastest first, as /proc/cpuinfo names them on x86 and
# on Arm.
_INSTRUCTIONS = (
    "amx_fp16", "amx_bf16", "amx_int8", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2",
    "i8mm", "bf16", "sve", "asimddp", "asimd",
)  # fmt: skip


def instructions() -> list[str]:
    """Which of the instructions for products the processor shows: `amx_…` are its tiles."""
    try:
        match = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    flags = set(match.group(1).split() if match else ())
    return [name for name in _INSTRUCTIONS if name in flags]


def accelerator() -> str | None:
    """The CUDA device's name, or None."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def commit() -> str:
    """The current commit, with `-dirty` if tracked files other than results differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def facts(device: str = "cpu") -> dict[str, object]:
    """The information needed to interpret a figure. `load` is the one-minute load average at the start."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "processor": processor(),
        "cores": host.cpus(),
        "instructions": instructions(),
        "accelerator": accelerator() if device == "cuda" else None,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "commit": commit(),
        **{package: _version(package) for package in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
