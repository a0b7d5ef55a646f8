"""Gives freed memory back to the system. By itself malloc keeps what many small allocations have left."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

_SOON_SECONDS = 0.5


class FreedMemory:
    """Of one process, on its event loop."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        self._planned = False

    def give_back_soon(self) -> None:
        """Returns at once. What is freed meanwhile is given back too, in one go on a thread."""
        if self._trim is not None and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_later(_SOON_SECONDS, self._give_back, self._trim)

    def _give_back(self, trim: Callable[[int], int]) -> None:
        self._planned = False
        asyncio.get_running_loop().run_in_executor(None, trim, 0)
