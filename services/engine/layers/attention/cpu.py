"""Attention on the CPU: a segment's queries, a run at a time, over exactly the keys that the run may see.

fp32: a product of all scores, their softmax, a product with the values. At the lengths of queries and passages that is
faster than torch's fused kernel, which takes over for long texts. 16 bits: always the fused kernel, which keeps scores
and sums in fp32 and multiplies in the processor's matrix tiles if it has them. Nothing is of size T × T.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from services.engine.types import Ids

_RUN = 64  # queries at once: enough for the products, and few of their scores are computed only to be masked
_UNMASKED_RUN = 256  # the same where nothing is masked: fewer calls
_SCORES = 1 << 24  # of all heads, held at once: 64 MB
_FUSED = 1536  # queries from which on the fused kernel is faster
_FUSED_RUN = 512  # queries at once in the fused kernel, if it needs a mask


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: Ids, cu_rows: Ids, cu_k: Ids, *, causal: bool
) -> torch.Tensor:
    """Ragged attention. Causal: aligned at the end, a segment's last query sees all of its keys; else every query does.

    q: `[Q, heads, D]`; k, v: `[T, kv_heads, D]` → `[Q, heads, D]`. As in `packing.Packed`: segment i has the queries
    from `cu_q[i]` on, the rows of k and v from `cu_rows[i]` on, and `cu_k[i + 1] - cu_k[i]` keys, inherited ones first.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    future = torch.full((_RUN, _RUN), float("-inf")).triu(1) if causal else None
    exact = q.dtype == torch.float32
    starts = cu_q.tolist()
    for start, stop, (keys, values) in zip(starts, starts[1:], _seen(k, v, cu_rows, cu_k), strict=False):
        if stop == start:
            continue
        if not exact or stop - start == len(keys) >= _FUSED:
            _fused(q[start:stop], keys, values, out[start:stop], causal=causal)
        else:
            _segment(q[start:stop], keys, values, future, out[start:stop])
    return out


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


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, *, causal: bool) -> None:
    """As `_segment`, by torch's own kernel. It masks only squares by itself, aligned at the start."""
    n, m = len(q), len(k)
    run = n if n in (1, m) or not causal else _FUSED_RUN
    for start in range(0, n, run):
        stop = min(start + run, n)
        count, seen = stop - start, m - n + stop if causal else m
        mask = None
        if causal and 1 < count < seen:
            mask = torch.full((count, seen), float("-inf"), dtype=q.dtype).triu_(seen - count + 1)
        queries, keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (q[start:stop], k[:seen], v[:seen]))
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal and mask is None and count > 1, enable_gqa=True
        )
        out[start:stop].copy_(mixed.squeeze(0).transpose(0, 1))


def _segment(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, future: torch.Tensor | None, out: torch.Tensor) -> None:
    """q, out: `[n, heads, D]`; k, v: `[m, kv_heads, D]`. The queries stand at the last n of the m keys.

    future: `[_RUN, _RUN]`, -inf where the key comes after the query; None if a query sees those as well.
    """
    (n, heads, width), (m, kv_heads, _) = q.shape, k.shape
    group = heads // kv_heads
    k, v, nothing = k.permute(1, 2, 0), v.transpose(0, 1), q.new_zeros(())
    run = max(1, min(_UNMASKED_RUN if future is None else _RUN, _SCORES // (heads * m)))
    for start in range(0, n, run):
        stop = min(start + run, n)
        count, first = stop - start, m - n + start
        seen = m if future is None else first + count
        # Heads that share their keys stand below each other, so that they are one product.
        queries = q[start:stop].view(count, kv_heads, group, width).permute(1, 2, 0, 3).reshape(kv_heads, -1, width)
        scores = torch.baddbmm(nothing, queries, k[:, :, :seen], beta=0, alpha=width**-0.5)
        if future is not None:
            scores.view(kv_heads, group, count, seen)[..., first:] += future[:count, :count]
        mixed = torch.bmm(torch.softmax(scores, -1), v[:, :seen]).view(kv_heads, group, count, width)
        out[start:stop].view(count, kv_heads, group, width).copy_(mixed.permute(2, 0, 1, 3))
