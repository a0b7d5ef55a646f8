"""Packed attention with shared prefixes: one implementation per device, the same meaning."""

from collections.abc import Callable

import torch

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""`(q [Q, heads, D], k [T, kv_heads, D], v [T, kv_heads, D]) -> [Q, heads, D]`: each query over the keys it may see."""
