"""Cuts the messages of a stream into chunks: large enough to compute efficiently, small enough for steady results."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_MAX_ITEMS = 64
_IN_WINDOW = 4
# Tokens are estimated before a text is tokenised: three characters each, plus the prompt's.
_CHARACTERS_PER_TOKEN = 3
_PROMPT_TOKENS = 8


def estimated_tokens(*parts: str) -> int:
    """Approximate number of tokens of a text, or of one in several parts, from its length."""
    return sum(map(len, parts)) // _CHARACTERS_PER_TOKEN + _PROMPT_TOKENS


def chunks(
    items: Sequence[T], costs: Sequence[int], window: int, keys: Sequence[Hashable] | None = None
) -> Iterator[tuple[int, Sequence[T], int]]:
    """Cuts items into (position of the first, items, estimated tokens), several of which fit into a stream's window.

    `costs`: estimated tokens of each item. With `keys`, the items of a chunk have distinct keys.
    """
    first, tokens = 0, 0
    seen: set[Hashable] = set()
    for position, more in enumerate(costs):
        full = position - first >= _MAX_ITEMS or tokens + more > window // _IN_WINDOW
        if position > first and (full or (keys and keys[position] in seen)):
            yield first, items[first:position], tokens
            first, tokens = position, 0
            seen.clear()
        tokens += more
        if keys:
            seen.add(keys[position])
    if first < len(items):
        yield first, items[first:], tokens
