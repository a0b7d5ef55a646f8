"""Attention on CUDA: one ragged call for all segments, keys and values of shared prefixes gathered first."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

Varlen = Callable[..., torch.Tensor]
"""`(q, k, v, cu_q, cu_k, max_q, max_k, causal)`; tests put a plain implementation in its place.

Ragged attention. Causal: aligned at the end, a segment's last query sees all of its keys; else every query does.
q: `[Q, heads, D]`; k, v: `[K, kv_heads, D]`.
"""


def as_varlen(attention: Callable[..., Any]) -> Varlen:
    """torch's `varlen_attn`, of 2.11 or later, as a Varlen: fp16 or bf16, head_dim up to 256."""
    # Grouped heads: refused without this flag from torch 2.12 on, unknown (and simply accepted) before.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(attention).parameters else {}

    def varlen(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_q: torch.Tensor,
        cu_k: torch.Tensor,
        max_q: int,
        max_k: int,
        causal: bool,
    ) -> torch.Tensor:
        out = attention(q, k, v, cu_q, cu_k, max_q, max_k, window_size=(-1, 0 if causal else -1), **grouped)
        assert isinstance(out, torch.Tensor)
        return out

    return varlen


varlen = as_varlen(varlen_attn)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Segments of queries over segments of keys; see `packing.Packed` for the fields."""

    cu_q: torch.Tensor
    cu_k: torch.Tensor
    kv_index: torch.Tensor | None
    max_q: int
    max_k: int
    causal: bool
    kernel: Varlen = varlen

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See Attention."""
        if self.kv_index is not None:
            k, v = k.index_select(0, self.kv_index), v.index_select(0, self.kv_index)
        return self.kernel(q, k, v, self.cu_q, self.cu_k, self.max_q, self.max_k, self.causal)
