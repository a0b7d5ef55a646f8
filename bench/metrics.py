"""Ranking metrics for test sets with exactly one relevant document per query."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.int64]


def ranks_of(scores: npt.NDArray[np.floating], target: npt.NDArray[np.integer] | None = None) -> Ranks:
    """The relevant document's rank, from 1, in each row of a (queries, documents) score matrix.

    `target[i]` is the column of the relevant document of row `i`; by default, the diagonal. A tie counts against the
    relevant document, so that a model with equal scores for all documents is rated last, not first.
    """
    rows = np.arange(len(scores))
    columns = rows if target is None else target
    own = scores[rows, columns]
    better = (scores >= own[:, None]).sum(axis=1)
    ranks: Ranks = np.maximum(better, 1).astype(np.int64)
    return ranks


def ndcg(ranks: Ranks, cut: int = 10) -> float:
    """Mean nDCG@cut. With one relevant document the ideal DCG is 1, so the value of a query is 1 / log2(1 + rank)."""
    return float(np.where(ranks <= cut, 1.0 / np.log2(1.0 + ranks), 0.0).mean())


def mrr(ranks: Ranks, cut: int = 10) -> float:
    """Mean reciprocal rank; 0 for a query with its relevant document below the cut."""
    return float(np.where(ranks <= cut, 1.0 / ranks, 0.0).mean())


def recall(ranks: Ranks, cut: int = 50) -> float:
    """Share of queries with the relevant document among the first `cut`."""
    return float((ranks <= cut).mean())


def summary(ranks: Ranks) -> dict[str, float]:
    """The three metrics, by the names that `python -m bench quality` prints."""
    return {"ndcg@10": ndcg(ranks), "mrr@10": mrr(ranks), "recall@50": recall(ranks)}
