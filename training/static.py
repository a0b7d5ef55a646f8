"""Trains the bag-of-tokens model: one vector of 384 floats per token; the vector of a text is the mean of its tokens.

Training processes hundreds of thousands of tokens per second. `nano_embed.py` converts the result to a Qwen3 model with
nearly the same scores.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse  # type: ignore[import-untyped]
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.batches import Batches
from training.losses import contrastive
from training.teacher import Teacher

Vectors = npt.NDArray[np.float16]


def initial_table(tokenizer: Tokenizer, counts: Counter[int], width: int = 384) -> Tensor:
    """(vocabulary, width): the teacher's vectors of the tokens' texts, centred, rotated to their principal axes, and
    scaled down for frequent tokens (a / (a + p), Arora et al. 2017)."""
    size = tokenizer.get_vocab_size()
    texts = [tokenizer.decode([i], skip_special_tokens=False).strip() or "." for i in range(size)]
    vectors = Teacher().encode(texts, max_tokens=16).astype(np.float32)
    vectors -= vectors.mean(0)
    _, _, axes = np.linalg.svd(vectors, full_matrices=False)
    vectors = vectors @ axes.T
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6
    share = np.array([counts[i] + 1 for i in range(size)], np.float64)
    share /= share.sum()
    vectors *= (1e-3 / (1e-3 + share))[:, None].astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(vectors[:, :width]))


class _Bag(torch.autograd.Function):
    """A sparse (texts, vocabulary) matrix times the table. torch's embedding bag has a much slower backward pass."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, counts: scipy.sparse.csr_array) -> Tensor:
        """(vocabulary, width) → (texts, width)."""
        ctx.counts = counts
        return torch.from_numpy(counts @ table.detach().numpy())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradient of the table."""
        return torch.from_numpy(ctx.counts.T.tocsr() @ grads[0].contiguous().numpy()), None


def pool(table: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """The mean token vector of each text, shape (texts, width)."""
    lengths = np.array([len(t) for t in texts])
    flat = np.concatenate([np.asarray(t, np.int32) for t in texts])
    values = np.repeat((1.0 / lengths).astype(np.float32), lengths)
    edges = np.concatenate([[0], lengths.cumsum()])
    counts = scipy.sparse.csr_array((values, flat, edges), shape=(len(texts), len(table)))
    counts.sum_duplicates()
    out = _Bag.apply(table, counts)  # type: ignore[no-untyped-call]
    assert isinstance(out, Tensor)
    return out


def train(
    table: Tensor,
    batches: Batches,
    teacher: Vectors,
    size: int = 2048,
    rate: float = 3e-3,
    report: Callable[[int, Tensor], None] | None = None,
    steps: int = 1500,
) -> Tensor:
    """Trains the table for `steps` steps; `teacher`: its vectors of the rows' short lines, (rows, 384)."""
    weights = table.clone().requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=rate, betas=(0.9, 0.99))
    began, smooth = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 30) * max(0.02, 1 - step / steps)
        batch = batches.draw(size, 64, 160)
        q, d = pool(weights, batch.queries), pool(weights, batch.docs)
        lines = torch.from_numpy(teacher[batch.rows].astype(np.float32))
        loss = contrastive(q, d, torch.from_numpy(batch.groups), lines @ lines.T)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 100 == 0 or step == steps - 1:
            print(f"static {step}/{steps} loss {smooth:.3f} {time.monotonic() - began:.0f} s", flush=True)
            if report is not None:
                report(step, weights.detach())
    return weights.detach()
