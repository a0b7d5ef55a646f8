"""The file winnow.json beside a reranker."""

from pathlib import Path

import pytest

from services.rerank.model_card import FILE, recommended_retrieval_weight


@pytest.mark.parametrize("card", ["[]", "{", *(f'{{"retrieval_weight": {bad}}}' for bad in ("2", '"x"', "true"))])
def test_a_malformed_card_stops_the_start(tmp_path: Path, card: str) -> None:
    (tmp_path / FILE).write_text(card)
    with pytest.raises(ValueError, match=r"winnow\.json"):
        recommended_retrieval_weight(str(tmp_path))


def test_a_hub_id_and_a_card_without_the_number_recommend_nothing(tmp_path: Path) -> None:
    assert recommended_retrieval_weight("Qwen/Qwen3-Reranker-0.6B") is None
    (tmp_path / FILE).write_text("{}")
    assert recommended_retrieval_weight(str(tmp_path)) is None
