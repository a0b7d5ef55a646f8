"""`winnow.json`: what a model's folder says about how to use it, beside what Hugging Face files hold."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "winnow.json"


def recommended_retrieval_weight(model: str) -> float | None:
    """The blend with first-stage scores that the folder's card recommends; None without a card, or for a hub id.

    ValueError where the card is malformed: a wrong blend would be served in silence.
    """
    card = Path(model).expanduser() / FILE
    if not card.is_file():
        return None
    try:
        weight = json.loads(card.read_text("utf-8")).get("retrieval_weight")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{card} is no JSON object") from error
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise ValueError(f"{card}: retrieval_weight must be a number from 0 to 1")
    return float(weight)
