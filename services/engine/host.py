"""What this process may use of its machine."""

import os
import re
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def use_threads(threads: int | None, tokenizer_threads: int) -> None:
    """Process-wide: the kernels' threads and the tokenizer's (its pool reads the variable on first use)."""
    torch.set_num_threads(threads or cpus())
    os.environ.setdefault("RAYON_NUM_THREADS", str(tokenizer_threads))


def cpus() -> int:
    """CPUs this process may use. A container's quota does not show in the count of processors; more threads than it
    allows would be throttled, all at the same moment."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroups v2, or "max"
        return count


def free_memory() -> int:
    """Bytes this process could still take; 0 if the system does not say."""
    try:
        match = re.search(r"^MemAvailable:\s*(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        match = None
    free = int(match.group(1)) * 1024 if match else 0
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):  # no cgroups v2, or "max"
        return free
