"""Runs nano-embed over many texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.model import Context, Qwen3, pad

Ids = Sequence[Sequence[int]]


def encode(model: Qwen3, texts: Ids, context: Context | None = None, budget: int = 6144) -> Tensor:
    """Embeddings (texts, hidden), not normalised, in the given order. Texts of similar length are batched."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    parts, start = [], 0
    while start < len(order):
        rows = order[start : start + max(1, budget // len(texts[order[start]]))]
        ids, lengths = pad([texts[i] for i in rows])
        parts.append(model(ids, lengths, [context] if context else [])[0])
        start += len(rows)
    back = torch.tensor(order).argsort()
    return torch.cat(parts)[back]
