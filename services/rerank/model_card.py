"""`winnow.json`: recommendations for a model, in its folder beside the Hugging Face files."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "winnow.json"


def recommended_retrieval_weight(model: str) -> float | None:
    """The weight of first-stage scores that the card recommends; None without a card, or for a hub id.

    ValueError if the card is malformed: a wrong weight would go unnoticed.
    """
    card = Path(model).expanduser() / FILE
    if not card.is_file():
        return None
    try:
        weight = json.loads(card.read_text("utf-8")).get("retrieval_weight")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{card} is not a JSON object") from error
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise ValueError(f"{card}: retrieval_weight must be a number from 0 to 1")
    return float(weight)
