"""Batches on the CPU."""

from collections.abc import Callable
from functools import partial

import torch

from services.engine.devices.base import Finish
from services.engine.layers.attention.cpu import attend
from services.engine.models.base import Head, Model, ModelInput, shares_prefixes
from services.engine.packing.packing import Packed, pack
from services.engine.types import Ids, Vector


class Cpu:
    """Computes in the calling thread (and the kernels' own)."""

    overlaps = False

    def __init__(self, model: Model, head: Head) -> None:
        self.model, self._head = model, head

    def pack(self, sequences: list[Ids]) -> Packed:
        """Shares every prefix, if the model lets it: computing costs more here than anything else."""
        return pack(sequences, min_saving=0.0 if shares_prefixes(self.model) else 1.0, pooling=self.model.pooling)

    @torch.inference_mode()
    def launch(self, packed: Packed) -> Finish:
        """Computes all of it before it returns."""
        attend_in = partial(attend, cu_rows=packed.cu_q, cu_k=packed.cu_k, causal=self.model.causal)
        hidden = self.model(
            ModelInput(
                ids=torch.from_numpy(packed.ids),
                positions=torch.from_numpy(packed.positions),
                wanted_rows=torch.from_numpy(packed.wanted_rows),
                starts=torch.from_numpy(packed.starts),
                attend=partial(attend_in, cu_q=packed.cu_q),
                attend_wanted=partial(attend_in, cu_q=packed.cu_wanted),
            )
        )
        rows: Vector = self._head(hidden).numpy()[packed.outputs]
        return lambda: rows

    def optimize(self, on_model_thread: Callable[[Callable[[], None]], None]) -> None:
        """Nothing to do."""
