"""Where a text can be cut for a tokenizer that takes words apart at spaces: BERT's, RoBERTa's, XLM-RoBERTa's.

A single space between two ASCII letters or digits parts two words in all of them, and nothing that normalises a text
looks over it. Texts without such spaces, as in Chinese, are read whole.
"""

import json
import re
from typing import Any

from tokenizers import Tokenizer as Fast

_SPACE = re.compile(r"(?<=[A-Za-z0-9]) (?=[A-Za-z0-9])")
_WINDOW = 1 << 13  # characters searched at a time: the search itself holds the GIL
# Normalizers that look at a character, or at one and what composes with it.
_LOCAL = {"BertNormalizer", "Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"}
_SQUEEZES = {"Regex": " {2,}"}  # XLM-RoBERTa's: several spaces are one


class Spaces:
    """The safe cuts, each before a space."""

    def after(self, text: str, position: int) -> int:
        """A safe cut at `position` or behind, near to it; the end of the text if there is none."""
        for start in range(max(position, 1), len(text), _WINDOW):
            if found := _SPACE.search(text, start, start + _WINDOW + 1):
                return found.start()
        return len(text)

    def before(self, text: str, position: int) -> int:
        """A safe cut at `position` or before, near to it; the beginning of the text if there is none."""
        for stop in range(position, 0, -_WINDOW):
            if found := _SPACE.search(text, max(1, stop - _WINDOW), stop + 2):
                return found.start()
        return 0


def parts_at_spaces(fast: Fast) -> bool:
    """Whether `Spaces` holds for the tokenizer. It is one whose special tokens are plain text."""
    state = json.loads(fast.to_str())
    if any(
        token["lstrip"] or token["rstrip"] or token["single_word"] or " " in token["content"]
        for token in state["added_tokens"]
        if not token["special"]
    ):
        return False
    steps = _steps(state["pre_tokenizer"], "pretokenizers")
    kinds = [step.get("type") for step in steps]
    match state["model"]["type"], kinds:
        case "WordPiece", ["BertPreTokenizer"]:
            parts = True
        case "BPE", ["ByteLevel"]:
            model = state["model"]
            plain = not any(model[key] for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
            parts = plain and steps[0].get("use_regex", True)
        case "Unigram", [*_, "Metaspace"]:
            parts = kinds[:-1] in ([], ["WhitespaceSplit"]) and steps[-1].get("prepend_scheme") == "always"
            parts = parts and steps[-1].get("split", True)
        case _:
            parts = False
    return parts and all(map(_is_local, _steps(state["normalizer"], "normalizers")))


def _is_local(normalizer: dict[str, Any]) -> bool:
    kind = normalizer.get("type")
    return kind in _LOCAL or (kind == "Replace" and normalizer.get("pattern") == _SQUEEZES)


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """A part of tokenizer.json as a list, whether it is a Sequence or not."""
    if part is None:
        return []
    return list(part[key]) if part.get("type") == "Sequence" else [part]
