"""Batches on a CUDA device: nothing on the path from tokens to results waits for it."""

import functools
import logging
from collections.abc import Callable

import numpy as np
import torch

from services.engine.devices import cuda_graphs
from services.engine.devices.base import Finish
from services.engine.devices.buffer_pool import BufferPool
from services.engine.models.base import Head, Model, shares_prefixes
from services.engine.packing import transfer
from services.engine.packing.packing import Packed, pack
from services.engine.types import Ids, Vector

# Sharing costs a gather of keys and values, some 5 % of a small model's time.
_MIN_SAVING = 0.05
_SLOTS = 4  # two batches in flight, each possibly split in two

_log = logging.getLogger(__name__)


class Cuda:
    """`launch` only enqueues work; `finish` waits for it on another thread while the next batch is launched."""

    overlaps = True

    def __init__(self, model: Model, head: Head, device: torch.device) -> None:
        self._model, self._head, self._device = model, head, device
        self._buffers = BufferPool(_SLOTS, pin=True)
        self._graphs: dict[cuda_graphs.Bucket, cuda_graphs.Graph] = {}

    def pack(self, sequences: list[Ids]) -> Packed:
        """Shares prefixes if the model lets it and it pays; for a batch that is small enough for a graph it never does:
        launches bound it."""
        shares, pooling = shares_prefixes(self._model), self._model.pooling
        if not shares or sum(map(len, sequences)) <= cuda_graphs.BUCKETS[-1].tokens:
            packed = pack(sequences, min_saving=1.0, pooling=pooling)
            if not shares or cuda_graphs.bucket_for(packed):
                return packed
        return pack(sequences, min_saving=_MIN_SAVING, pooling=pooling)

    @torch.inference_mode()
    def launch(self, packed: Packed) -> Finish:
        """See Device."""
        bucket = cuda_graphs.bucket_for(packed)
        graph = self._graphs.get(bucket) if bucket else None
        shaped = cuda_graphs.pad(packed, bucket) if bucket and graph else packed
        layout = graph.layout if graph else transfer.lay_out(shaped)
        slot = self._buffers.take(layout.words)
        transfer.write(shaped, layout, slot.ints.numpy())
        ints = slot.ints[: layout.words]
        if graph:
            out = graph.replay(ints)[: packed.texts]
        else:
            on_device = ints.to(self._device, non_blocking=True)
            out = self._head(self._model(transfer.read(shaped, layout, on_device, causal=self._model.causal)))
        host = slot.room(out.numel()).view(out.shape)
        host.copy_(out, non_blocking=True)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # sleeps rather than spins
        done.record()

        def finish() -> Vector:
            done.synchronize()
            rows: Vector = host.numpy()[packed.outputs]  # a copy
            self._buffers.give(slot)
            return rows

        return finish

    def optimize(self, on_model_thread: Callable[[Callable[[], None]], None]) -> None:
        """Compiles, then captures graphs, while batches run. Blocking: for a thread of its own.

        The compiled model is warmed up here and swapped in whole, so no request ever waits for the compiler.
        """
        try:
            compiled = self._model.compiled()
            # One row and many, of all and of wanted ones: what the compiler specialises on.
            text = np.arange(32, dtype=np.int32)
            for batch in ([text[:1]], [text], [text, text + 1]):
                packed = pack(batch, pooling=compiled.pooling)
                layout = transfer.lay_out(packed)
                host = np.zeros(layout.words, np.int32)
                transfer.write(packed, layout, host)
                ints = torch.from_numpy(host).to(self._device)
                compiled(transfer.read(packed, layout, ints, causal=compiled.causal))
            torch.cuda.synchronize()
            torch.compiler.set_stance("eager_on_recompile")
            on_model_thread(lambda: setattr(self, "_model", compiled))
        except Exception:
            _log.warning("compiling failed; elementwise kernels stay as they are", exc_info=True)
        try:
            pool = torch.cuda.graph_pool_handle()
            for bucket in reversed(cuda_graphs.BUCKETS):  # largest first: the others fit into its memory
                on_model_thread(functools.partial(self._capture, bucket, pool))
        except Exception:
            _log.warning("capturing graphs failed; small batches go without", exc_info=True)

    @torch.inference_mode()
    def _capture(self, bucket: cuda_graphs.Bucket, pool: object) -> None:
        self._graphs[bucket] = cuda_graphs.Graph(bucket, self._model, self._head, self._device, pool)
