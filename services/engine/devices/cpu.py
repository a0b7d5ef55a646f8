"""Batches on the CPU."""

from collections.abc import Callable
from functools import partial

import torch

from services.engine.devices.base import Finish
from services.engine.layers.attention.cpu import attend
from services.engine.models.base import Head, Model, ModelInput
from services.engine.packing.packing import Packed, pack
from services.engine.types import Ids, Vector


class Cpu:
    """Computes in the calling thread (and the kernels' own)."""

    overlaps = False

    def __init__(self, model: Model, head: Head) -> None:
        self.model, self._head = model, head

    def pack(self, sequences: list[Ids]) -> Packed:
        """Shares every prefix: computing costs more here than anything else."""
        return pack(sequences)

    @torch.inference_mode()
    def launch(self, packed: Packed) -> Finish:
        """Computes all of it before it returns."""
        hidden = self.model(
            ModelInput(
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
