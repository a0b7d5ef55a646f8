"""Ranking measures: for test sets in which every query has exactly one right document, and of changes in a ranking."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Changes:
    """Of `queries`, how many have another order of their best documents, and how many other members among them.

    `difference`: the greatest between two scores of one document.
    """

    queries: int
    order: int
    members: int
    difference: float


def best(scores: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """The columns of each row's `count` greatest scores, the greatest first; of equal ones the first column."""
    columns: npt.NDArray[np.int64] = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return columns


def changes(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating], cut: int = 10) -> Changes:
    """What differs among the `cut` best of each row between two (queries, documents) score matrices."""
    one, other = best(before, cut), best(after, cut)
    return Changes(
        queries=len(before),
        order=int((one != other).any(axis=1).sum()),
        members=int((np.sort(one, axis=1) != np.sort(other, axis=1)).any(axis=1).sum()),
        difference=float(np.abs(before - after).max()),
    )
