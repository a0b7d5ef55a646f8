"""What a token is as a word: one code for all its spellings, and how rare it is."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

_ENDINGS = ("ing", "ies", "es", "ed", "s", "e")


def canonical(text: str) -> str:
    """A token without surrounding space, case and the commonest English endings."""
    text = text.strip().lower()
    if text.isalpha() and len(text) > 3:
        for ending in _ENDINGS:
            if text.endswith(ending) and len(text) - len(ending) >= 3:
                return text.removesuffix(ending)
    return text


def codes(tokenizer: Tokenizer, share: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Unit vectors (vocabulary, width), drawn by chance but equal for equal ``canonical`` texts and zero where there
    is no letter or digit; and rarity (vocabulary,) from 0 (1 % of all text, or no word) to 1 (one in a million)."""
    texts = [canonical(tokenizer.decode([i], skip_special_tokens=False)) for i in range(len(share))]
    number: dict[str, int] = {}
    index = torch.tensor([number.setdefault(text, len(number)) for text in texts])
    total = torch.zeros(len(number)).index_add_(0, index, share)
    word = torch.tensor([any(c.isalnum() for c in text) and "<|" not in text for text in texts])
    vectors = torch.nn.functional.normalize(torch.randn(len(number), width), dim=-1)
    rarity = (-total.log() / 9.2 - 0.5).clamp(0, 1)
    return vectors[index] * word[:, None], rarity[index] * word
