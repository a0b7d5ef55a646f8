"""Stage three: train nano-rerank on lists of one right document and hard wrong ones."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from training import prompts
from training.batches import Batches
from training.embed import optimiser_for, schedule
from training.model import Context, Qwen3, pad
from training.static import pool

Vectors = npt.NDArray[np.float16]


class Judge:
    """Scores lists of documents exactly as the Qwen3-Reranker prompt has it; shared text is computed once."""

    def __init__(self, model: Qwen3, tokenizer: Tokenizer) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self.suffix = self.ids(prompts.RERANK_SUFFIX)
        self._yes, self._no = (tokenizer.token_to_id(word) for word in ("yes", "no"))

    def ids(self, text: str) -> list[int]:
        """Token ids without anything added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def opening(self, task: str = prompts.TASK) -> Context:
        """Keys and values of everything up to ``<Query>:``."""
        text = prompts.RERANK_PREFIX + f"<Instruct>: {task}\n<Query>:"
        head = self.ids(text)
        kept: Context | None = self.model(torch.tensor([head]), torch.tensor([len(head)]), keep=True)[1]
        assert kept is not None
        return kept

    def query(self, text: str, limit: int = 64) -> list[int]:
        """`` query\\n<Document>:`` as tokens, the query cut to ``limit``."""
        return self.ids(" " + text)[:limit] + self.ids("\n<Document>:")

    def document(self, ids: Sequence[int], limit: int) -> list[int]:
        """A document's tokens (which must start with the space) cut to ``limit``, and the suffix."""
        return [*ids[:limit], *self.suffix]

    def __call__(self, opening: Context, queries: Sequence[Sequence[int]], docs: Sequence[Sequence[int]]) -> Tensor:
        """Logits yes − no, shape (queries, documents each); ``docs`` holds the same number for every query."""
        asked = self.model(*pad(queries), [opening], keep=True)[1]
        hidden = self.model(*pad(docs), [opening, asked])[0]
        weight = self.model.embed_tokens.weight
        logits: Tensor = hidden @ (weight[self._yes] - weight[self._no])
        return logits.view(len(queries), -1)


@dataclass(frozen=True, slots=True)
class Lists:
    """Queries, and for each the corpus rows to be ranked, the right one first."""

    queries: list[str]
    rows: npt.NDArray[np.int64]


def mine(batches: Batches, table: Tensor, size: int, wrong: int, among: int, rng: random.Random) -> Lists:
    """Draw ``size`` rows, write their queries, and take ``wrong`` documents for each from the bag-of-tokens' best
    ``among``, the better ones more often: what a first stage would hand on."""
    batch = batches.draw(size, 64, 200, neighbours=16, pure=True)
    scores = F.normalize(pool(table, batch.queries), dim=-1) @ F.normalize(pool(table, batch.docs), dim=-1).T
    unfair = torch.from_numpy(batch.groups[:, None] == batch.groups[None, :])
    best = scores.masked_fill(unfair, -2).topk(among, dim=-1).indices.numpy()
    chance = np.random.default_rng(rng.randrange(2**32))
    weights = 1 / (np.arange(among) + 3)
    keys = np.log(chance.random((size, among))) / weights  # a weighted draw without replacement
    picked = np.take_along_axis(best[: len(keys)], np.argsort(-keys, axis=1)[: len(best), :wrong], axis=1)
    return Lists(batch.texts, np.concatenate([batch.rows[:, None], batch.rows[picked]], axis=1))


def loss_of(logits: Tensor, teacher: Tensor) -> Tensor:
    """Listwise cross-entropy (the first is right), the teacher's softmax, and BCE for usable probabilities."""
    right = torch.zeros(len(logits), dtype=torch.long)
    soft = (teacher / 0.05).softmax(-1)
    truth = torch.zeros_like(logits)
    truth[:, 0] = 1
    listwise = F.cross_entropy(logits, right)
    follow = -(soft * logits.log_softmax(-1)).sum(-1).mean()
    return listwise + 0.3 * follow + 0.4 * F.binary_cross_entropy_with_logits(logits, truth)


def train(
    model: Qwen3,
    batches: Batches,
    tokenizer: Tokenizer,
    table: Tensor,
    teacher: tuple[Vectors, Vectors],
    steps: int,
    lists: int = 32,
    wrong: int = 7,
    rate: float = 1e-3,
    table_rate: float = 3e-4,
    report: Callable[[int, Qwen3], None] | None = None,
    save: Path | None = None,
) -> None:
    """``steps`` steps of ``lists`` lists of one right and ``wrong`` wrong documents, mostly cut to 64 tokens."""
    judge = Judge(model, tokenizer)
    optimiser = optimiser_for(model, rate, table_rate)
    rng = random.Random(2)
    pending: list[tuple[str, npt.NDArray[np.int64]]] = []
    began, smooth, top, tokens = time.monotonic(), 0.0, 0.0, 0
    for step in range(steps):
        schedule(optimiser, step / steps)
        if len(pending) < lists:
            mined = mine(batches, table, 2048, wrong, 40, rng)
            pending += list(zip(mined.queries, mined.rows, strict=True))
            rng.shuffle(pending)
        todo, pending = pending[:lists], pending[lists:]
        limit = 192 if step % 10 == 9 else 64
        if limit == 192:
            todo = todo[: lists // 3]
        task = prompts.TASK if rng.random() < 0.8 else rng.choice(prompts.OTHER_TASKS)
        form = rng.random()
        docs = [[judge.document(batches.rerank_document(i, form), limit) for i in rows] for _, rows in todo]
        order = sorted(range(len(todo)), key=lambda i: max(map(len, docs[i])))
        optimiser.zero_grad(set_to_none=True)
        hits, total = 0, 0.0
        for start in range(0, len(order), 8):
            part = order[start : start + 8]
            queries = [judge.query(todo[i][0], 40) for i in part]
            rows = np.stack([todo[i][1] for i in part])
            logits = judge(judge.opening(task), queries, [doc for i in part for doc in docs[i]])
            tq = torch.from_numpy(teacher[0][rows[:, 0]].astype(np.float32))
            td = torch.from_numpy(teacher[1][rows].astype(np.float32))
            loss = loss_of(logits, (td @ tq[:, :, None])[..., 0]) * (len(part) / len(todo))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            hits += int((logits.argmax(-1) == 0).sum())
            tokens += sum(len(doc) for i in part for doc in docs[i])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = 0.0 if step == 0 else 0.97
        smooth, top = keep * smooth + (1 - keep) * total, keep * top + (1 - keep) * hits / len(todo)
        if step % 25 == 0 or step == steps - 1:
            spent = time.monotonic() - began
            print(
                f"rerank {step}/{steps} loss {smooth:.3f} top-1 {top:.3f} {spent:.0f} s {tokens / spent:.0f} tok/s",
                flush=True,
            )
        if step % 200 == 199 and report is not None:
            report(step, model)
        if save is not None and step % 50 == 49:
            torch.save(model.state_dict(), save)
