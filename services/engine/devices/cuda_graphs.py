"""CUDA graphs for small batches, where launching kernels takes longer than running them.

A graph replays one fixed shape, so a batch is padded up to a bucket: which bucket and how is plain integer code.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from services.engine.layers.pooling import Pooling
from services.engine.models.base import Head, Model
from services.engine.packing import transfer
from services.engine.packing.packing import Packed, pack
from services.engine.types import Ids


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of one graph: `tokens` rows in `segments` segments, the last of which holds the padding."""

    tokens: int
    segments: int


BUCKETS = tuple(Bucket(tokens, max(4, tokens // 8) + 1) for tokens in (16, 32, 64, 128, 256, 512, 1024))


def bucket_for(packed: Packed) -> Bucket | None:
    """The smallest bucket that holds an unshared batch and one more segment; None if there is none."""
    if packed.kv_index is not None:
        return None
    segments = len(packed.cu_q)  # one more than there are
    return next((b for b in BUCKETS if packed.tokens <= b.tokens and segments <= b.segments), None)


def pad(packed: Packed, bucket: Bucket) -> Packed:
    """The same batch in the bucket's shape.

    Padding rows form a segment of their own: left uncovered, attention would not write their outputs, and whatever
    memory held would go on through the layers. Segments after that have no rows. `max_q` and `max_k` are baked into
    the graph, so they are the bucket's upper bounds. Results are the first rows of the output, as before.
    """
    cu = _extend(packed.cu_q, bucket.segments + 1, bucket.tokens)
    if packed.pooling is Pooling.MEAN:  # every row is wanted, also of the padding
        wanted, cu_wanted, starts = np.arange(bucket.tokens, dtype=np.int32), cu, cu
    else:  # one row of each text and none of the padding, which stands for as many texts as are left
        wanted = _extend(packed.wanted_rows, bucket.segments, 0)
        cu_wanted = _extend(packed.cu_wanted, bucket.segments + 1, packed.texts)
        starts = np.arange(bucket.segments + 1, dtype=np.int32)
    return replace(
        packed,
        ids=_extend(packed.ids, bucket.tokens, 0),
        positions=_extend(packed.positions, bucket.tokens, 0),
        wanted_rows=wanted,
        cu_q=cu,
        cu_k=cu,
        cu_wanted=cu_wanted,
        starts=starts,
        max_q=bucket.tokens,
        max_k=bucket.tokens,
    )


def _extend(array: Ids, length: int, value: int) -> Ids:
    return np.concatenate([array, np.full(length - len(array), value, np.int32)])


class Graph:
    """The whole forward pass for one bucket, captured. Belongs to the model's thread."""

    def __init__(self, bucket: Bucket, model: Model, head: Head, device: torch.device, pool: object) -> None:
        example = pad(pack([np.zeros(1, np.int32)], pooling=model.pooling), bucket)
        self.layout = transfer.lay_out(example)
        self.ints = torch.zeros(self.layout.words, dtype=torch.int32, device=device)
        host = np.zeros(self.layout.words, np.int32)
        transfer.write(example, self.layout, host)
        self.ints.copy_(torch.from_numpy(host))
        batch = transfer.read(example, self.layout, self.ints, causal=model.causal)
        # Once outside the graph: libraries allocate and choose kernels on first use, which cannot be captured.
        head(model(batch))
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that waits for results may go on meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            self._out = head(model(batch))

    def replay(self, ints: torch.Tensor) -> torch.Tensor:
        """Runs on `ints` (page-locked, in `layout`). The result, `[segments, width]`, lives until the next replay."""
        self.ints.copy_(ints, non_blocking=True)
        self._graph.replay()
        return self._out
