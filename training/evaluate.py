"""Scores exported checkpoints: `python -m training.evaluate FILE.jsonl [--embed DIR] [--rerank DIR] [--json]`.

The metrics are those of `python -m bench quality`, computed from the files instead of through the services.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from bench.metrics import ranks_of, summary
from training import prompts, teacher
from training.embed import encode
from training.export import load
from training.losses import WIDTHS
from training.progress import progress
from training.rerank import Judge
from training.rows import read_pairs
from training.tokenizer import END, token

Scores = npt.NDArray[np.float32]
MODELS = Path(__file__).parent.parent / "models"
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MAX_TOKENS = 512
TOP = 50


def bm25(queries: Sequence[str], docs: Sequence[str]) -> Scores:
    """BM25 with the defaults of `bm25s`, without English stop words and without stemming."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(docs), stopwords="en", show_progress=False), show_progress=False)
    words: Any = bm25s.tokenize(list(queries), stopwords="en", return_ids=False, show_progress=False)
    none = np.zeros(len(docs), np.float32)
    return np.stack([index.get_scores(w) if w else none for w in words]).astype(np.float32)


@torch.inference_mode()
def embeddings(folder: Path, texts: Sequence[str], budget: int = 8192) -> torch.Tensor:
    """Embeddings (texts, width), not normalised. Texts are cut to `MAX_TOKENS`; the end token is kept."""
    model, tokenizer = load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = token(tokenizer, END)
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return encode(model, [[*e.ids[: MAX_TOKENS - 1], end] for e in encoded], budget=budget)


def first_stage(folder: Path, queries: Sequence[str], docs: Sequence[str]) -> dict[int, Scores]:
    """Cosines (queries, documents) at each Matryoshka width, with the default instruction for queries."""
    q = embeddings(folder, [prompts.embed_query(text) for text in queries])
    d = embeddings(folder, docs)
    return {w: (F.normalize(q[:, :w], dim=-1) @ F.normalize(d[:, :w], dim=-1).T).numpy() for w in WIDTHS}


@torch.inference_mode()
def rerank(folder: Path, queries: Sequence[str], docs: Sequence[str], top: npt.NDArray[np.int64]) -> Scores:
    """Logits (queries, documents) of the documents in each query's row of `top`, −inf elsewhere."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    judge = Judge(load(folder), tokenizer)
    opening = judge.opening()
    spaced = [e.ids for e in tokenizer.encode_batch_fast([f" {d}" for d in docs], add_special_tokens=False)]
    ready = [judge.document(ids, MAX_TOKENS) for ids in spaced]
    out = np.full((len(queries), len(docs)), -np.inf, np.float32)
    for row, text in enumerate(progress(queries, "rerank")):
        order = sorted(top[row].tolist(), key=lambda i: len(ready[i]))
        asked = [judge.query(text, MAX_TOKENS)]
        for some in np.array_split(np.array(order), 5):
            out[row, some] = judge(opening, asked, [ready[i] for i in some])[0].numpy()
    return out


def blend(cosine: Scores, logits: Scores, weight: float) -> Scores:
    """`weight · cosine + (1 − weight) · sigmoid(logit)`; −inf if there is no logit."""
    mixed = weight * cosine + (1 - weight) / (1 + np.exp(-np.clip(logits, -80, 80)))
    return np.where(np.isfinite(logits), mixed, -np.inf).astype(np.float32)


def score(
    file: Path, embed_folder: Path, rerank_folder: Path, weight: float, limit: int | None = None, baselines: bool = True
) -> dict[str, Mapping[str, float]]:
    """All metrics for one file. `limit`: number of queries to rerank."""
    queries, docs = read_pairs(file)
    figures: dict[str, Mapping[str, float]] = {}
    if baselines:
        figures["bm25"] = summary(ranks_of(bm25(queries, docs)))
        model = teacher.Teacher()
        similar = model.encode(queries, 256).astype(np.float32) @ model.encode(docs, 256).astype(np.float32).T
        figures["teacher"] = summary(ranks_of(similar))
    stages = first_stage(embed_folder, queries, docs)
    for width, cosine in stages.items():
        figures[f"first@{width}"] = summary(ranks_of(cosine))
    count = len(queries) if limit is None else limit
    cosine = stages[max(stages)][:count]
    if count < len(queries):
        figures["first (same queries)"] = summary(ranks_of(cosine))
    top = np.argsort(-cosine, axis=1, kind="stable")[:, :TOP]
    logits = rerank(rerank_folder, queries[:count], docs, top)
    figures["rerank"] = _below(logits)
    figures[f"rerank, weight {weight}"] = _below(blend(cosine, logits, weight))
    for other in WEIGHTS:
        figures[f"weight {other}"] = _below(blend(cosine, logits, other))
    return figures


def _below(scores: Scores) -> dict[str, float]:
    """The metrics. A relevant document that was not reranked counts as not found."""
    ranks = ranks_of(scores)
    own = np.isfinite(np.diagonal(scores[:, : len(scores)]))
    return summary(np.where(own, ranks, scores.shape[1]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--embed", type=Path, default=MODELS / "nano-embed")
    parser.add_argument("--rerank", type=Path, default=MODELS / "nano-rerank")
    parser.add_argument("--limit", type=int, help="rerank only this many queries, the first ones")
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    weight = json.loads((options.rerank / "winnow.json").read_text(encoding="utf-8"))["retrieval_weight"]
    for file in options.files:
        figures = score(file, options.embed, options.rerank, weight, options.limit, not options.no_baselines)
        for stage, values in figures.items():
            if options.json:
                print(json.dumps({"file": file.stem, "stage": stage, **values}))
            else:
                print(f"{file.stem:8s} {stage:24s}", *(f"{name} {value:.4f}" for name, value in values.items()))


if __name__ == "__main__":
    main()
