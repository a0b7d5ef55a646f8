"""How candidates are ordered and cut."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cache.codec import CachedScore
from gateway.index.documents import Document
from gateway.search.scoring import blend, cut, nearest, rescored
from gateway.search.types import Candidate, Hit
from services.api.backend import ScoredDocument


def candidate(name: str, cosine: float, rank: int) -> Candidate:
    return Candidate(Document(name, name), cosine, rank)


def scored(probability: float) -> ScoredDocument:
    return ScoredDocument(logit=0.0, probability=probability, tokens=1, truncated=False)


def names(hits: list[Hit]) -> list[str]:
    return [hit.candidate.document.id for hit in hits]


def test_nearest_is_ordered_by_cosine_and_equal_ones_keep_their_order() -> None:
    rows = np.array([[0, 1], [1, 0], [0.6, 0.8], [1, 0]], np.float32)
    assert nearest(rows, np.array([1, 0], np.float32), 3) == [(1, 1.0), (3, 1.0), (2, pytest.approx(0.6))]
    assert nearest(np.zeros((0, 2), np.float32), np.array([1, 0], np.float32), 3) == []


def test_cosines_never_leave_their_range() -> None:
    row = np.array([[0.6000001, 0.8000001]], np.float32)
    assert nearest(row, row[0], 1) == [(0, 1.0)]


def test_rescored_takes_exact_cosines_where_there_are_some() -> None:
    near = [("a", 0.9), ("b", 0.8), ("c", 0.7), ("d", 0.7)]
    assert rescored(near, {0: 0.6, 2: 0.95}) == [("c", 0.95), ("b", 0.8), ("d", 0.7), ("a", 0.6)]
    assert rescored(near, {}) == near


@given(st.floats(0, 1), st.floats(-1, 1), st.floats(0, 1))
def test_a_blend_lies_between_its_parts(weight: float, cosine: float, score: float) -> None:
    assert min(cosine, score) - 1e-12 <= blend(weight, cosine, score) <= max(cosine, score) + 1e-12
    assert (blend(1.0, cosine, score), blend(0.0, cosine, score)) == (cosine, score)


def test_cut_blends_orders_and_cuts() -> None:
    candidates = [candidate("a", 0.9, 1), candidate("b", 0.5, 2), candidate("c", 0.1, 3)]
    scores = [scored(0.1), scored(0.9), None]
    by_rerank = cut(candidates, scores, retrieval_weight=0.0, min_score=None, top_n=10)
    assert (names(by_rerank), [hit.score for hit in by_rerank]) == (["b", "a", "c"], [0.9, 0.1, 0.0])
    assert names(cut(candidates, scores, retrieval_weight=1.0, min_score=None, top_n=2)) == ["a", "b"]
    assert names(cut(candidates, scores, retrieval_weight=0.5, min_score=0.5, top_n=10)) == ["b", "a"]
    assert cut(candidates, scores, retrieval_weight=0.5, min_score=0.71, top_n=10) == []


def test_equal_scores_keep_the_first_stages_order() -> None:
    candidates = [candidate("b", 0.5, 2), candidate("a", 0.5, 1)]
    assert names(cut(candidates, [None, None], retrieval_weight=1.0, min_score=None, top_n=2)) == ["a", "b"]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.none() | st.floats(-60, 60)), max_size=12),
    st.floats(0, 1), st.integers(1, 12), st.none() | st.floats(-1, 1),
)  # fmt: skip
def test_the_cut_is_sorted_by_score_then_rank(
    pairs: list[tuple[float, float | None]], weight: float, top_n: int, least: float | None
) -> None:
    pairs.sort(key=lambda pair: -pair[0])
    candidates = [Candidate(Document(str(n), ""), cosine, n + 1) for n, (cosine, _) in enumerate(pairs)]
    scores = [None if logit is None else scored(CachedScore(logit, 1, False).probability) for _, logit in pairs]
    hits = cut(candidates, scores, retrieval_weight=weight, min_score=least, top_n=top_n)
    assert len(hits) <= top_n
    order = [(-hit.score, hit.candidate.rank) for hit in hits]
    assert order == sorted(order)
    for hit in hits:
        probability = hit.reranked.probability if hit.reranked else 0.0
        assert hit.score == weight * hit.candidate.cosine + (1 - weight) * probability
        assert least is None or hit.score >= least
