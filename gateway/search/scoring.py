"""How candidates are ordered and cut: pure functions."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from gateway.search.types import Candidate, Hit
from services.api.backend import ScoredDocument
from services.api.vectors import F32

T = TypeVar("T")


def nearest(rows: F32, query: F32, count: int) -> list[tuple[int, float]]:
    """The `count` rows nearest to the query as (row, cosine), best first; ties in their order.

    rows: float32 `[n, dimensions]`, query: `[dimensions]`, all of unit length.
    """
    cosines = np.clip(rows @ query, -1.0, 1.0)
    order = np.argsort(-cosines, kind="stable")[:count]
    return [(int(place), float(cosines[place])) for place in order]


def rescored(near: Sequence[tuple[T, float]], exact: Mapping[int, float]) -> list[tuple[T, float]]:
    """Replaces estimated cosines by exact ones, by position; best first, ties in their order."""
    better = [(item, exact.get(place, cosine)) for place, (item, cosine) in enumerate(near)]
    return sorted(better, key=lambda pair: -pair[1])


def blend(retrieval_weight: float, cosine: float, probability: float) -> float:
    """The final score of a hit. `probability` is the second stage's: a logit has no bounds to weigh it by."""
    return retrieval_weight * cosine + (1.0 - retrieval_weight) * probability


def cut(
    candidates: Sequence[Candidate],
    scores: Sequence[ScoredDocument | None],
    *,
    retrieval_weight: float,
    min_score: float | None,
    top_n: int,
) -> list[Hit]:
    """Blends both scores and keeps the best. A candidate without a rerank score counts as one with probability 0."""
    hits = [
        Hit(candidate, blend(retrieval_weight, candidate.cosine, 0.0 if scored is None else scored.probability), scored)
        for candidate, scored in zip(candidates, scores, strict=True)
    ]
    hits.sort(key=lambda hit: (-hit.score, hit.candidate.rank))
    least = -math.inf if min_score is None else min_score
    return [hit for hit in hits if hit.score >= least][:top_n]
