import json
from pathlib import Path

import numpy as np
import pytest

from bench import metrics
from bench.quality import QuestionSet, _widths, bm25

ROWS = [
    {"query": "copy a file", "doc": "shutil.copy copies a file to another place"},
    {"query": "parse numbers", "doc": "float parses numbers written in text"},
    {"query": "duplicate a document", "doc": "shutil.copy copies a file to another place"},
    {"query": "zebra", "doc": "sleep waits for some seconds"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n")
    return path


def test_equal_documents_are_one(file: Path) -> None:
    found = QuestionSet.read(file, None)
    assert len(found.queries) == 4
    assert len(found.documents) == 3
    assert found.right.tolist() == [0, 1, 0, 2]


def test_fewer_queries_keep_all_documents(file: Path) -> None:
    found = QuestionSet.read(file, 2)
    assert found.queries == ["copy a file", "duplicate a document"]
    assert len(found.documents) == 3


def test_a_bad_row_is_named(file: Path) -> None:
    file.write_text(json.dumps(ROWS[0]) + "\nnot json\n")
    with pytest.raises(ValueError, match=r"set\.jsonl:2"):
        QuestionSet.read(file, None)


def test_bm25_finds_shared_words_and_counts_ties_against_it(file: Path) -> None:
    ranks = bm25(QuestionSet.read(file, None))
    assert ranks[0] == 1
    assert ranks[1] == 1
    assert ranks[3] == 3  # no document has the word: all score 0, and the right one comes last


def test_only_widths_that_the_model_has_are_measured() -> None:
    assert _widths(None, 32, 384) == [64, 128, 192, 384]
    assert _widths(None, 384, 384) == [384]  # its vectors cannot be cut
    assert _widths("64,32", 384, 384) == [32, 64]


def test_metrics_by_hand() -> None:
    ranks = np.array([1, 3, 11, 60])
    assert metrics.ndcg(ranks) == pytest.approx((1 + 1 / np.log2(4)) / 4)
    assert metrics.mrr(ranks) == pytest.approx((1 + 1 / 3) / 4)
    assert metrics.recall(ranks) == pytest.approx(3 / 4)
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.1, 0.3], [0.5, 0.5, 0.5]])
    assert metrics.ranks_of(scores).tolist() == [1, 3, 3]
    assert metrics.ranks_of(scores, np.array([2, 2, 0])).tolist() == [2, 1, 3]
