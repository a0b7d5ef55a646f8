"""Makes `models/nano-embed` and `models/nano-rerank` from scratch: `python -m training`.

Each stage writes its result to `--work`. A stage is skipped if its result exists, so an interrupted run can be resumed.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bench.metrics import ndcg, ranks_of
from training import data, debian, evaluate, export, lexical, nano_embed, nano_rerank, static
from training import tokenizer as bpe
from training.batches import Batches
from training.model import Shape
from training.queries import QueryWriter
from training.rows import read_pairs, read_rows
from training.teacher import cached

SEED = 0
EMBEDDER = Shape()
RERANKER = Shape(intermediate_size=384, num_hidden_layers=4)
STEPS = 1500


class Pipeline:
    """The stages, in order. Each is a method that reads the results of earlier stages from `work`."""

    def __init__(self, work: Path, models: Path) -> None:
        self._work = work
        self._models = models

    def run(self) -> None:
        """Runs all stages."""
        began = time.monotonic()
        for stage in (self.text, self.vocabulary, self.bag, self.embedder, self.reranker, self.blend):
            torch.manual_seed(SEED)
            print(f"[{time.monotonic() - began:6.0f} s] {stage.__name__}", flush=True)
            stage()
        print(f"[{time.monotonic() - began:6.0f} s] done", flush=True)

    def text(self) -> None:
        """Builds the corpus and the held-out sets."""
        if not (self._work / "train.jsonl").exists():
            data.build(self._work)

    def vocabulary(self) -> None:
        """Trains the tokenizer, and computes the teacher's vector of each short line."""
        rows = read_rows(self._work / "train.jsonl")
        if not (self._work / "tokenizer" / "tokenizer.json").exists():
            texts = (text for row in rows for text in (row.query, row.doc[:1500], row.title))
            bpe.save(bpe.train(texts), self._work / "tokenizer")
        vectors = cached(self._work / "teacher.npy", [row.query for row in rows])
        if not (self._work / "batches.pkl").exists():
            writer = QueryWriter(debian.synonyms(self._work))
            with (self._work / "batches.pkl").open("wb") as out:
                pickle.dump(Batches(rows, self._tokenizer(), writer, vectors, seed=SEED), out)

    def bag(self) -> None:
        """Trains the bag-of-tokens model."""
        tokenizer, batches = self._tokenizer(), self._batches()
        counts: Counter[int] = Counter()
        for doc in batches.docs:
            counts.update(doc.tolist())
        self._kept("bag.pt", lambda: static.train(
            static.initial_table(tokenizer, counts), batches, self._teacher(), steps=STEPS))  # fmt: skip

    def embedder(self) -> None:
        """Converts the bag-of-tokens model to a Qwen3 model."""
        tokenizer = self._tokenizer()
        opens, query, end = (bpe.token(tokenizer, text) for text in ("Instruct", "Query", bpe.END))
        model = nano_embed.embedder(self._bag(), EMBEDDER, opens, query, end)
        export.embedder(model, tokenizer, self._models / "nano-embed")

    def reranker(self) -> None:
        """Builds a Qwen3 reranker from the bag-of-tokens model and the codes of the words."""
        tokenizer = self._tokenizer()
        tokens = {name: bpe.token(tokenizer, name) for name in nano_rerank.MARKS}
        share = torch.ones(RERANKER.vocab_size)
        for doc in self._batches().docs:
            share.index_add_(0, torch.from_numpy(doc).long(), torch.ones(len(doc)))
        codes, rarity = lexical.codes(tokenizer, share / share.sum(), *nano_rerank.CODE)
        model = nano_rerank.reranker(self._bag(), codes, rarity, RERANKER, tokens)
        export.reranker(model, tokenizer, self._models / "nano-rerank")

    def blend(self) -> None:
        """Chooses `retrieval_weight` on a separate set of packages, never on the test sets."""
        queries, docs = read_pairs(self._work / "dev.jsonl")
        cosine = evaluate.first_stage(self._models / "nano-embed", queries, docs)[EMBEDDER.hidden_size][:500]
        top = np.argsort(-cosine, axis=1)[:, : evaluate.TOP]
        logits = evaluate.rerank(self._models / "nano-rerank", queries[:500], docs, top)
        scores = {w: ndcg(ranks_of(evaluate.blend(cosine, logits, w))) for w in evaluate.WEIGHTS}
        best = max(scores, key=lambda w: scores[w])
        print({w: round(value, 4) for w, value in scores.items()}, "→", best, flush=True)
        text = json.dumps({"retrieval_weight": best}) + "\n"
        (self._models / "nano-rerank" / "winnow.json").write_text(text, encoding="utf-8")

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self._work / "tokenizer" / "tokenizer.json"))

    def _batches(self) -> Batches:
        with (self._work / "batches.pkl").open("rb") as kept:
            batches = pickle.load(kept)
        assert isinstance(batches, Batches)
        return batches

    def _teacher(self) -> static.Vectors:
        vectors: static.Vectors = np.load(self._work / "teacher.npy")
        return vectors

    def _bag(self) -> Tensor:
        table = torch.load(self._work / "bag.pt")
        assert isinstance(table, Tensor)
        return table

    def _kept(self, name: str, make: Callable[[], Tensor]) -> None:
        if not (self._work / name).exists():
            torch.save(make(), self._work / name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=data.HERE / "work", help="folder for downloads and caches")
    parser.add_argument("--models", type=Path, default=evaluate.MODELS, help="folder for the checkpoints")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    Pipeline(options.work.resolve(), options.models).run()


if __name__ == "__main__":
    main()
