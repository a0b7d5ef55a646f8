import json
from pathlib import Path

import numpy as np

from bench.invariance import Scores, Size, read
from bench.metrics import Changes, best, changes


def test_equal_scores_change_nothing() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 30))
    assert changes(scores, scores.copy()) == Changes(queries=4, order=0, members=0, difference=0.0)


def test_changes_among_the_best_alone_count() -> None:
    before = np.array([[0.9, 0.8, 0.7, 0.1]] * 4)
    after = np.array(
        [
            [0.9, 0.8, 0.7, 0.1],  # nothing
            [0.8, 0.9, 0.7, 0.1],  # the order of the two best
            [0.9, 0.7, 0.8, 0.1],  # the third best comes in
            [0.9, 0.8, 0.1, 0.7],  # below the cut
        ]
    )
    found = changes(before, after, cut=2)
    assert (found.queries, found.order, found.members) == (4, 2, 1)
    assert np.isclose(found.difference, 0.6)


def test_equal_scores_of_a_query_keep_their_order() -> None:
    assert best(np.array([[0.5, 0.5, 0.9, 0.5]]), 3).tolist() == [[2, 0, 1]]


def test_a_format_is_compared_with_the_first_alone() -> None:
    right, swapped = np.array([[0.9, 0.8]]), np.array([[0.8, 0.9]])
    first = Scores(embed=(right, swapped), rerank=(right, right), best=best(right, 2))
    other = Scores(embed=(right, right), rerank=(swapped, right), best=first.best)
    assert {by: found.order for by, found in other.changes().items()} == {"embed": 0, "rerank": 1}
    assert {by: found.order for by, found in other.changes_from(first, "float32").items()} == {
        "embed, from float32": 0,
        "rerank, from float32": 1,
    }


def test_the_documents_of_the_queries_come_first(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(json.dumps({"query": f"q{at}", "doc": f"d{at % 5}"}) for at in range(8)))
    texts = read(file, Size(queries=2, documents=3, candidates=1))
    assert texts.queries == ["q0", "q4"]
    assert texts.documents == ["d0", "d4", "d1"]
    assert len(read(file, Size(queries=2, documents=None, candidates=1)).documents) == 5
