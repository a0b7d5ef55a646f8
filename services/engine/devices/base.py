"""How a packed batch runs on a device."""

from collections.abc import Callable
from typing import Protocol

from services.engine.packing.packing import Packed
from services.engine.types import Ids, Vector

Finish = Callable[[], Vector]
"""Waits for the device and gives float32 `[N, width]`, a row per sequence. May run on another thread."""


class Device(Protocol):
    """Runs batches one after another. `launch` belongs to one thread."""

    overlaps: bool
    """Whether a second batch may be launched before the first has finished."""

    def pack(self, sequences: list[Ids]) -> Packed:
        """Lays sequences out as suits this device."""

    def launch(self, packed: Packed) -> Finish:
        """Starts the forward pass."""

    def optimize(self, on_model_thread: Callable[[Callable[[], None]], None]) -> None:
        """Does what may take long and makes batches faster, while they run. Called once, on a thread of its own."""
