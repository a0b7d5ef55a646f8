"""Attention as in the textbook, in the calling convention of `varlen_attn`."""

import torch


def plain_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
) -> torch.Tensor:
    """Causal: aligned at the end. Rows that no segment covers are NaN, as memory that was never written may be."""
    out = torch.full_like(q, float("nan"))
    group = q.shape[1] // k.shape[1]
    for i in range(len(cu_q) - 1):
        queries, keys = slice(int(cu_q[i]), int(cu_q[i + 1])), slice(int(cu_k[i]), int(cu_k[i + 1]))
        n, m = queries.stop - queries.start, keys.stop - keys.start
        assert n <= max_q
        assert m <= max_k
        if n == 0:
            continue
        scores = torch.einsum("qhd,khd->hqk", q[queries], k[keys].repeat_interleave(group, 1)) * q.shape[-1] ** -0.5
        hidden = torch.ones(n, m, dtype=torch.bool).triu(m - n + 1 if causal else m)
        precision = torch.promote_types(q.dtype, torch.float32)
        weights = scores.to(precision).masked_fill(hidden, float("-inf")).softmax(-1).to(q.dtype)
        out[queries] = torch.einsum("hqk,khd->qhd", weights, v[keys].repeat_interleave(group, 1))
    return out
