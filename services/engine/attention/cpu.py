"""Attention on the CPU: a fused flash call per block, partial results merged by their log-sum-exp.

A segment's own keys and those of each ancestor are separate calls, so no K or V is ever copied, no mask is built, and
nothing is of size T × T.
"""

from collections.abc import Sequence

import torch

from services.engine.packing import Block

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """softmax(q kᵀ / √D) v over exactly the (query, key) pairs that `blocks` list.

    q: `[Q, heads, D]`; k, v: `[T, kv_heads, D]` → `[Q, heads, D]`. Blocks of own keys come first and cover every query.
    """
    dtype = q.dtype
    # Rounded to 16 bits before they are merged, partial results would depend on where a prefix was cut.
    q, k, v = q.float(), k.float(), v.float()
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(q.shape[:2], dtype=torch.float32)
    covered = 0
    for block in blocks:
        queries = slice(block.q, block.q + block.count * block.q_len)
        keys = slice(block.k, block.k + block.count * block.k_len)
        part, part_lse = _flash(
            _batch(q[queries], block.count),
            _batch(k[keys], block.count),
            _batch(v[keys], block.count),
            0.0,
            block.causal,
        )
        part, part_lse = part.transpose(1, 2).flatten(0, 1), part_lse.transpose(1, 2).flatten(0, 1)
        if block.q >= covered:  # the first keys these queries meet
            out[queries], lse[queries] = part, part_lse
            covered = queries.stop
        else:
            # Two softmaxes over disjoint keys weigh as their sums of exponentials do.
            out[queries] = out[queries].lerp(part, torch.sigmoid(part_lse - lse[queries]).unsqueeze(-1))
            lse[queries] = torch.logaddexp(lse[queries], part_lse)
    return out.to(dtype)


def _batch(x: torch.Tensor, count: int) -> torch.Tensor:
    """[count · length, heads, D] → [count, heads, length, D], a view."""
    return x.view(count, -1, *x.shape[1:]).transpose(1, 2)
