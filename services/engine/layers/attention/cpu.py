"""Attention on the CPU: a segment's queries, a run at a time, over exactly the keys that the run may see.

A product of all scores, their softmax, a product with the values: at the lengths of queries and passages that is faster
than torch's fused kernel, which takes over for long texts. Nothing is of size T × T.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from services.engine.types import Ids

_RUN = 64  # queries at once: enough for the products, and few of their scores are computed only to be masked
_SCORES = 1 << 24  # of all heads, held at once: 64 MB
_FUSED = 1536  # queries from which on the fused kernel is faster


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: Ids, cu_rows: Ids, cu_k: Ids) -> torch.Tensor:
    """Causal ragged attention, aligned at the end: a segment's last query sees all of its keys.

    q: `[Q, heads, D]`; k, v: `[T, kv_heads, D]` → `[Q, heads, D]`. As in `packing.Packed`: segment i has the queries
    from `cu_q[i]` on, the rows of k and v from `cu_rows[i]` on, and `cu_k[i + 1] - cu_k[i]` keys, inherited ones first.
    """
    dtype = q.dtype
    q, k, v = q.float(), k.float(), v.float()
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    future = torch.full((_RUN, _RUN), float("-inf")).triu(1)
    starts = cu_q.tolist()
    for start, stop, (keys, values) in zip(starts, starts[1:], _seen(k, v, cu_rows, cu_k), strict=False):
        if stop > start:
            _segment(q[start:stop], keys, values, future, out[start:stop])
    return out.to(dtype)


def _seen(k: torch.Tensor, v: torch.Tensor, cu_rows: Ids, cu_k: Ids) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The keys and values that each segment sees. A pair is good until the next one is asked for."""
    own = cu_rows[1:] - cu_rows[:-1]
    inherited = cu_k[1:] - cu_k[:-1] - own
    has_heirs = [*(inherited[1:] > 0), False]  # segments come depth first: an heir is the next one
    related = (inherited > 0) | has_heirs
    longest = int((inherited + own)[related].max(initial=0))
    # The path from a root to the segment at hand: each one is written behind its parent, over the parent's last heir.
    path_k, path_v = k.new_empty(longest, *k.shape[1:]), v.new_empty(longest, *v.shape[1:])
    for row, length, before, on_path in zip(cu_rows.tolist(), own.tolist(), inherited.tolist(), related, strict=False):
        keys, values = k[row : row + length], v[row : row + length]
        if on_path:
            seen = before + length
            path_k[before:seen], path_v[before:seen] = keys, values
            keys, values = path_k[:seen], path_v[:seen]
        yield keys, values


def _segment(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, future: torch.Tensor, out: torch.Tensor) -> None:
    """q, out: `[n, heads, D]`; k, v: `[m, kv_heads, D]`. The queries stand at the last n of the m keys.

    future: `[_RUN, _RUN]`, -inf where the key comes after the query.
    """
    (n, heads, width), (m, kv_heads, _) = q.shape, k.shape
    if n == m >= _FUSED:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        fused = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out.copy_(fused.squeeze(0).transpose(0, 1))
        return
    group = heads // kv_heads
    k, v = k.permute(1, 2, 0), v.transpose(0, 1)
    run = max(1, min(_RUN, _SCORES // (heads * m)))
    for start in range(0, n, run):
        stop = min(start + run, n)
        count, first, seen = stop - start, m - n + start, m - n + stop
        # Heads that share their keys stand below each other, so that they are one product.
        queries = q[start:stop].view(count, kv_heads, group, width).permute(1, 2, 0, 3).reshape(kv_heads, -1, width)
        scores = torch.baddbmm(future[0, 0], queries, k[:, :, :seen], beta=0, alpha=width**-0.5)
        scores.view(kv_heads, group, count, seen)[..., first:] += future[:count, :count]
        mixed = torch.bmm(torch.softmax(scores, -1), v[:, :seen]).view(kv_heads, group, count, width)
        out[start:stop].view(count, kv_heads, group, width).copy_(mixed.permute(2, 0, 1, 3))
