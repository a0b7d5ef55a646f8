"""Tokenises the ends of long texts: what is cut away afterwards need not be read.

A text is read in pieces between safe cuts, from either end, until there are tokens enough.
"""

from collections.abc import Callable, Sequence

import numpy as np

from services.engine.text.cuts import Cuts
from services.engine.text.spaces import Spaces
from services.engine.types import Ids

Encode = Callable[[Sequence[str]], list[Ids]]
Pause = Callable[[], None]
"""Called between pieces of work. Raises if the rest is not wanted any more."""

# Characters. Texts up to here are read whole: they cost less than some hundredths of a second.
WHOLE = 1 << 16
_PIECE = 1 << 14  # the first of a long text; each that follows is twice as long, up to WHOLE


def encode_ends(
    encode: Encode, cuts: Cuts | Spaces, texts: Sequence[str], first: int, last: int, pause: Pause
) -> list[Ids]:
    """Token ids of each text. Of a long one with more than `first + last`, some between those may be missing.

    Never so many that it has `first + last` or fewer: who keeps no more than that sees that the text is longer.
    """
    found: dict[int, Ids] = {}
    group: list[int] = []
    size = 0

    def flush() -> None:
        nonlocal size
        pause()
        found.update(zip(group, encode([texts[index] for index in group]), strict=True))
        group.clear()
        size = 0

    for index, text in enumerate(texts):
        if len(text) > WHOLE:
            found[index] = _ends(encode, cuts, text, first, last, pause)
            continue
        group.append(index)
        size += len(text)
        if size >= WHOLE:
            flush()
    if group:
        flush()
    return [found[index] for index in range(len(texts))]


def _ends(encode: Encode, cuts: Cuts | Spaces, text: str, first: int, last: int, pause: Pause) -> Ids:
    head, start, wanted, size = [np.empty(0, np.int32)], 0, first if last else first + 1, _PIECE
    while start < len(text) and wanted > 0:
        pause()
        stop = cuts.after(text, start + size)
        head += encode([text[start:stop]])
        wanted -= len(head[-1])
        start, size = stop, min(2 * size, WHOLE)
    tail: list[Ids] = []
    end, wanted, size = len(text), last + 1 if last else 0, _PIECE
    while end > start and wanted > 0:
        pause()
        begin = max(start, cuts.before(text, end - size))
        tail += encode([text[begin:end]])
        wanted -= len(tail[-1])
        end, size = begin, min(2 * size, WHOLE)
    return np.concatenate([*head, *reversed(tail)])
