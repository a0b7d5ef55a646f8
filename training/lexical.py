"""Words behind tokens: one code for all spellings of a word, and its rarity."""

from __future__ import annotations

import re

import Stemmer
import torch
from tokenizers import Tokenizer
from torch import Tensor

_stem = Stemmer.Stemmer("english").stemWord


def canonical(text: str) -> str:
    """The lower-case stem of a token (Snowball, English), without the space or mark before it."""
    text = re.sub(r"^\W+", "", text.lower()).strip()
    return _stem(text) if text.isalpha() and len(text) > 3 else text


def codes(tokenizer: Tokenizer, share: Tensor, blocks: int, width: int) -> tuple[Tensor, Tensor]:
    """Codes and rarities of all tokens. They are equal for tokens with equal `canonical` text.

    Codes: random unit vectors (vocabulary, blocks · width) with blocks of equal length; zero if a token has no letter
    or digit. Rarity (vocabulary,): from 0 (one in forty of all tokens, or not a word) to 1 (one in a million).
    """
    texts = [canonical(tokenizer.decode([i], skip_special_tokens=False)) for i in range(len(share))]
    number: dict[str, int] = {}
    index = torch.tensor([number.setdefault(text, len(number)) for text in texts])
    total = torch.zeros(len(number)).index_add_(0, index, share)
    word = torch.tensor([any(c.isalnum() for c in text) and "<|" not in text for text in texts])
    drawn = torch.randn(len(number), blocks, width)
    vectors = torch.nn.functional.normalize(drawn, dim=-1).flatten(1) / blocks**0.5
    rarity = ((-total.log() - 3.6) / 10.2).clamp(0, 1)
    return vectors[index] * word[:, None], rarity[index] * word
