"""Where a text can be cut in two so that the tokens of the parts are the tokens of the whole.

A byte-level BPE tokenizer normalises a text, splits it by a pattern and merges within each piece. So a cut is safe if
the pattern splits there whatever stands before and after, and if neither normalisation nor an added token spans it.
"""

import json
import re
from typing import Any

from tokenizers import Tokenizer as Fast
from tokenizers.models import BPE

from services.engine.text.runs import Runs

# Qwen2's and Qwen3's splitting pattern. The texts of a tokenizer with another one are never cut.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = [
    {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
]

# The pattern looks ahead only within white space, and never behind. Hence it splits
# - before a space, a tab or a digit that follows anything but white space: no piece goes on over them;
# - after the last line break of some white space: `\s*[\r\n]+` and `[\r\n]*` both end there;
# - between a letter and a mark that is none.
# Characters after a cut never compose with what is before them, and the classes of all those named are settled in
# every version of Unicode. U+180E is white space in some; control characters differ between libraries.
_SOLID = r"[^\s\u180e\x00-\x1f]"
_LETTER, _MARK = "[A-Za-z一-龥ぁ-ゖァ-ヺ가-힣]", "、。，．！？；：「」（）…"
# Each begins with a set of few characters, for which `re` searches quickly.
_CUT_BEFORE = re.compile(rf"[ \t0-9{_MARK}](?:(?<={_SOLID}[ \t0-9])|(?<={_LETTER}[{_MARK}]))")
_CUT_AFTER = re.compile(rf"[\r\n](?=[ \t]+{_SOLID}|[!-~一-龥])")
_WINDOW = 1 << 13  # characters searched at a time: the search itself holds the GIL
_NEAR = 1 << 10  # characters before a run in which its word is looked for


class Cuts:
    """The safe cuts of a tokenizer. Of one that is unlike Qwen's, none is known."""

    def __init__(self, fast: Fast) -> None:
        self._runs = Runs(fast) if _is_known(fast) else None

    def after(self, text: str, position: int) -> int:
        """A safe cut at `position` or behind, near to it; the end of the text if there is none."""
        if self._runs:
            for start in range(max(position, 1), len(text), _WINDOW):
                if cut := min(_cuts(text, start, start + _WINDOW), default=None):
                    return cut
                run = self._runs.at(text, start, lambda end: self._word(text, end))
                if run and (cut := run.after(start)):
                    return cut
        return len(text)

    def before(self, text: str, position: int) -> int:
        """A safe cut at `position` or before, near to it; the beginning of the text if there is none."""
        if self._runs:
            for stop in range(position, 0, -_WINDOW):
                if cut := min(_cuts(text, max(1, stop - _WINDOW), stop), default=None):
                    return cut
                run = self._runs.at(text, stop - 1, lambda end: self._word(text, end))
                if run and (cut := run.before(stop)):
                    return cut
        return 0

    def _word(self, text: str, position: int) -> int:
        """A safe cut at `position` or before; where the search ends if there is none near to it."""
        begin = max(0, position - _NEAR)
        for stop in range(position, begin, -1):
            if _cuts(text, stop, stop):
                return stop
        return begin


def _cuts(text: str, first: int, last: int) -> list[int]:
    """The first cut of either kind from `first` to `last`, if there are any."""
    before = _CUT_BEFORE.search(text, first, last + 1)
    after = _CUT_AFTER.search(text, first - 1, last + _NEAR)  # it looks ahead over white space
    found = (before and before.start(), after and after.end())
    return [cut for cut in found if cut and cut <= last]


def _is_known(fast: Fast) -> bool:
    model = fast.model
    if not isinstance(model, BPE):
        return False
    if model.dropout or model.unk_token or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if fast.normalizer is not None and _state(fast.normalizer) != {"type": "NFC"}:
        return False
    pre_tokenizer = {} if fast.pre_tokenizer is None else _state(fast.pre_tokenizer)
    steps = pre_tokenizer.get("pretokenizers")
    if not isinstance(steps, list) or len(steps) != len(_PRE_TOKENIZERS):
        return False
    if any(
        step.get(key) != value
        for step, known in zip(steps, _PRE_TOKENIZERS, strict=True)
        for key, value in known.items()
    ):
        return False
    return not any(
        token.lstrip or token.rstrip or token.single_word or _spans_a_cut(token.content)
        for token in fast.get_added_tokens_decoder().values()
    )


def _spans_a_cut(token: str) -> bool:
    """Whether a text could be cut within this token. Neighbours count: a cut needs a character on each side."""
    return any(_cuts(token, cut, cut) for cut in range(1, len(token))) or token != token.strip()


def _state(part: Any) -> dict[str, object]:
    """What tokenizer.json says of a part."""
    state: dict[str, object] = json.loads(part.__getstate__())
    return state
