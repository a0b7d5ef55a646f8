"""How a packed batch runs on a device."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from services.engine.layers.attention.cpu import attend
from services.engine.models.qwen3.forward import Batch, Qwen3
from services.engine.models.qwen3.heads import Head
from services.engine.packing.packing import Packed, pack
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


class Cpu:
    """Computes in the calling thread (and the kernels' own)."""

    overlaps = False

    def __init__(self, model: Qwen3, head: Head) -> None:
        self.model, self._head = model, head

    def pack(self, sequences: list[Ids]) -> Packed:
        """Shares every prefix: computing costs more here than anything else."""
        return pack(sequences)

    @torch.inference_mode()
    def launch(self, packed: Packed) -> Finish:
        """Computes all of it before it returns."""
        hidden = self.model(
            Batch(
                ids=torch.from_numpy(packed.ids),
                positions=torch.from_numpy(packed.positions),
                last_rows=torch.from_numpy(packed.last_rows),
                attend=partial(attend, cu_q=packed.cu_q, cu_rows=packed.cu_q, cu_k=packed.cu_k),
                attend_last=partial(attend, cu_q=packed.cu_last, cu_rows=packed.cu_q, cu_k=packed.cu_k),
            )
        )
        rows: Vector = self._head(hidden).numpy()[packed.outputs]
        return lambda: rows

    def optimize(self, on_model_thread: Callable[[Callable[[], None]], None]) -> None:
        """Nothing to do."""
