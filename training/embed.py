"""Stage two: train nano-embed, all of it, from the bag-of-tokens start."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training import prompts
from training.batches import Batches
from training.losses import contrastive
from training.model import Context, Qwen3, pad

Ids = Sequence[Sequence[int]]


def encode(model: Qwen3, texts: Ids, context: Context | None = None, budget: int = 6144) -> Tensor:
    """Embeddings (texts, hidden), not normalised, in the order given; rows of like length run together."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    parts, start = [], 0
    while start < len(order):
        rows = order[start : start + max(1, budget // len(texts[order[start]]))]
        ids, lengths = pad([texts[i] for i in rows])
        parts.append(model(ids, lengths, [context] if context else [])[0])
        start += len(rows)
    back = torch.tensor(order).argsort()
    return torch.cat(parts)[back]


class QueryPrompts:
    """The heads of queries as token lists, their keys and values computed once a batch."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._random = random.Random(seed)

    def draw(self) -> list[int]:
        """The default instruction in 70 % of batches, none in 15 %, another in the rest."""
        pick = self._random.random()
        if pick < 0.15:
            return []
        task = prompts.TASK if pick < 0.85 else self._random.choice(prompts.OTHER_TASKS)
        return self._tokenizer.encode(prompts.embed_query("", task), add_special_tokens=False).ids

    def context(self, model: Qwen3, head: list[int]) -> Context | None:
        """The head's keys and values, with gradients."""
        if not head:
            return None
        kept: Context | None = model(torch.tensor([head]), torch.tensor([len(head)]), keep=True)[1]
        return kept


def optimiser_for(model: Qwen3, rate: float, table_rate: float, decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW with a rate of its own for the embedding table, and no decay for it and for norms."""
    table = [model.embed_tokens.weight]
    norms = [p for p in model.parameters() if p.dim() == 1]
    rest = [p for n, p in model.named_parameters() if p.dim() == 2 and not n.startswith("embed_tokens")]
    groups = [
        {"params": table, "lr": table_rate, "weight_decay": 0.0},
        {"params": norms, "lr": rate, "weight_decay": 0.0},
        {"params": rest, "lr": rate, "weight_decay": decay},
    ]
    for group in groups:
        group["peak"] = group["lr"]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8)


def schedule(optimiser: torch.optim.Optimizer, done: float, warm: float = 0.02) -> None:
    """Linear warm-up, then linear decay to 2 %; ``done`` runs from 0 to 1."""
    factor = min(1.0, (done + 1e-3) / warm) * max(0.02, 1 - done)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor


def train(
    model: Qwen3,
    batches: Batches,
    tokenizer: Tokenizer,
    end: int,
    teacher: tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]],
    steps: int,
    size: int = 512,
    rate: float = 6e-4,
    table_rate: float = 3e-4,
    report: Callable[[int, Qwen3], None] | None = None,
    save: Path | None = None,
) -> None:
    """``steps`` steps of ``size`` pairs; queries up to 48 tokens, documents up to 96 (every eighth batch 224)."""
    optimiser = optimiser_for(model, rate, table_rate)
    heads = QueryPrompts(tokenizer, seed=1)
    began, smooth, tokens = time.monotonic(), 0.0, 0
    for step in range(steps):
        schedule(optimiser, step / steps)
        long = step % 8 == 7
        batch = batches.draw(size // 2 if long else size, 48, 224 if long else 96)
        head = heads.draw()
        q = encode(model, [[*t, end] for t in batch.queries], heads.context(model, head))
        d = encode(model, [[*t, end] for t in batch.docs])
        tq = torch.from_numpy(teacher[0][batch.rows].astype(np.float32))
        td = torch.from_numpy(teacher[1][batch.rows].astype(np.float32))
        loss = contrastive(q, d, torch.from_numpy(batch.groups), tq @ td.T)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        tokens += sum(map(len, batch.queries)) + sum(map(len, batch.docs))
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if step % 25 == 0 or step == steps - 1:
            spent = time.monotonic() - began
            print(f"embed {step}/{steps} loss {smooth:.3f} {spent:.0f} s {tokens / spent:.0f} tok/s", flush=True)
        if (step % 100 == 0 or step == steps - 1) and report is not None:
            report(step, model)
        if save is not None and step % 100 == 99:
            torch.save(model.state_dict(), save)
