"""Losses of the embedder: contrastive at each Matryoshka width, and the similarities of the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = (64, 128, 192, 384)
TEMPERATURE = 0.04


def contrastive(
    queries: Tensor,
    docs: Tensor,
    groups: Tensor,
    teacher: Tensor | None = None,
    teacher_weight: float = 0.5,
) -> Tensor:
    """Symmetric cross-entropy over the batch, averaged over `WIDTHS`. Vectors are cut first, then normalised.

    `queries`, `docs`: (batch, width). `groups`: (batch,); pairs with equal values are not used as negatives.
    `teacher`: (batch, batch) similarities of query and document; their softmax is a second target.
    """
    target = torch.arange(len(queries))
    unfair = (groups[:, None] == groups[None, :]) & ~torch.eye(len(groups), dtype=torch.bool)
    soft = None
    if teacher is not None:
        soft = (teacher / 0.05).masked_fill(unfair, -1e4).softmax(-1)
    total = queries.new_zeros(())
    for width in WIDTHS:
        q, d = F.normalize(queries[:, :width], dim=-1), F.normalize(docs[:, :width], dim=-1)
        scores = (q @ d.T / TEMPERATURE).masked_fill(unfair, -1e4)
        loss = 0.7 * F.cross_entropy(scores, target) + 0.3 * F.cross_entropy(scores.T, target)
        if soft is not None:
            loss = loss + teacher_weight * -(soft * scores.log_softmax(-1)).sum(-1).mean()
        total = total + loss
    return total / len(WIDTHS)
