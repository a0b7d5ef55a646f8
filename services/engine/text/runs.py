"""Where a very long run of one character can be cut: no boundary of words helps within it, but BPE repeats itself.

Merging never crosses a boundary of tokens, so what a word's tokens are up to one of them are the tokens of that much
of the word alone, and the rest likewise. No token in a run of `c` is longer than the longest of the vocabulary that is
made of `c` alone, so one of as many positions next to each other is a boundary. Hence, if the run cut off at each of
them begins with the same token, so does the run, however long it is and whatever follows; then again what is left of
it. For the beginning of the run, with what stands before it in its word, the same argument gives the first boundary.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer as Fast

_LETTER_OR_DIGIT = re.compile(r"[A-Za-z0-9一-龥]")
_SOLID = re.compile(r"[!-~一-龥]")
_BYTE_LEVEL = {" ": "Ġ", "\n": "Ċ", "\t": "ĉ", "\r": "č"}  # how byte-level vocabularies spell them; others as they are
_NEAR = 512  # characters before a run in which its word must begin


@dataclass(frozen=True, slots=True)
class Run:
    """Cuts at `first`, `first + step`, … up to `last`."""

    first: int
    step: int
    last: int

    def after(self, position: int) -> int | None:
        """The first cut at `position` or behind."""
        steps = max(0, -(-(position - self.first) // self.step))
        cut = self.first + steps * self.step
        return cut if cut <= self.last else None

    def before(self, position: int) -> int | None:
        """The last cut at `position` or before."""
        cut = self.first + (min(position, self.last) - self.first) // self.step * self.step
        return cut if cut >= self.first else None


class Runs:
    """The runs of ASCII characters that a tokenizer's vocabulary, byte-level BPE, lets one cut."""

    def __init__(self, fast: Fast) -> None:
        self._fast = fast
        vocabulary = fast.get_vocab(with_added_tokens=False)
        self._longest = max(map(len, vocabulary), default=0)
        self._longest_of: dict[str, int] = {}
        for token in vocabulary:
            if token and token == token[0] * len(token):
                self._longest_of[token[0]] = max(len(token), self._longest_of.get(token[0], 0))
        for added in fast.get_added_tokens_decoder().values():
            if len(set(added.content)) == 1:  # a run of it holds this token, which nothing merges
                self._longest_of.pop(_BYTE_LEVEL.get(added.content[0], added.content[0]), None)
        self._steps: dict[str, int | None] = {}

    def at(self, text: str, position: int, word_before: Callable[[int], int]) -> Run | None:
        """The run around `position`, if it is one that can be cut. `word_before(p)`: a safe cut at p or before."""
        c = text[position]
        widest = self._longest_of.get(_BYTE_LEVEL.get(c, c))
        if not c.isascii() or c.isdigit() or widest is None:
            return None
        if c * 8 not in text[max(0, position - 8) : position + 8]:
            return None  # short; told before the text is copied
        start = len(text[:position].rstrip(c))
        end = len(text) - len(text[position:].lstrip(c))
        last = end - 2 * self._longest - 4 * widest
        if last <= start:
            return None
        word = start
        if c.isspace():
            # Whether white space belongs to one word with other white space depends on what comes behind.
            if start and not _SOLID.match(text, start - 1):
                return None
            if c in "\r\n" and start and not _LETTER_OR_DIGIT.match(text, start - 1):
                # A mark takes the line breaks that follow, but no other white space behind them.
                if end < len(text) and not _SOLID.match(text, end):
                    return None
                word = word_before(start)
        else:
            word = word_before(start)
        if start - word > _NEAR:
            return None
        head = text[word:start]
        step = self._step(c, widest)
        first = self._first(head, c, widest)
        return Run(start + first, step, last) if step and first is not None and start + first <= last else None

    def _step(self, c: str, widest: int) -> int | None:
        """The length of the token with which every long enough run begins."""
        if c not in self._steps:
            firsts = {ids[0] for ids in self._encode([c * length for length in range(2 * widest, 3 * widest)])}
            self._steps[c] = len(self._spelling(firsts.pop())) if len(firsts) == 1 else None
        return self._steps[c]

    def _first(self, head: str, c: str, widest: int) -> int | None:
        """A boundary in a long run after `head`, from the beginning of the run."""
        if not head:
            return 0
        shortest = self._longest + 2 * widest
        encoded = self._encode([head + c * length for length in range(shortest, shortest + widest)])
        common = 0
        while len({tuple(ids[common : common + 1]) for ids in encoded}) == 1 and common < len(encoded[0]):
            common += 1
        rest = encoded[0][common:]
        spelling = _BYTE_LEVEL.get(c, c)
        if any(set(self._spelling(token)) != {spelling} for token in rest):
            return None  # the shared tokens end before the run
        return shortest - sum(len(self._spelling(token)) for token in rest)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._fast.encode_batch_fast(texts, add_special_tokens=False)]

    def _spelling(self, token: int) -> str:
        return str(self._fast.id_to_token(token))
