"""What malloc keeps of freed memory goes back to the system."""

import ctypes
from pathlib import Path

import pytest

from services.runtime.memory import FreedMemory
from tests.support.waiting import until

MIB = 1 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [kib] = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    return kib << 10


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim")
async def test_freed_memory_is_given_back() -> None:
    blocks = [bytes(2000) for _ in range(100_000)]  # too large for Python's own allocator
    kept = blocks[::500]  # between freed ones, so that malloc cannot shrink its heap by itself
    del blocks
    held = resident()
    memory = FreedMemory()
    memory.give_back_soon()
    memory.give_back_soon()  # one is planned
    await until(lambda: resident() < held - 100 * MIB)
    assert len(kept) == 200
