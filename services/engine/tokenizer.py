"""Text → token ids with the plain `tokenizers` library."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Fast

from services.engine.cuts import Cuts
from services.engine.ends import Pause, encode_ends
from services.engine.errors import CheckpointError
from services.engine.types import Ids

_CONTROL = re.compile(r"(<\|[a-z_]+\|>)")

# Characters. The library computes several texts on threads of its own, which all callers share, and one text on the
# caller's: there, few are quick and never wait, and a very long one keeps nobody waiting.
_FEW, _VERY_LONG = 2000, 1 << 17


class Tokenizer:
    """Thread-safe: nothing is set after construction (`enable_truncation` would be per-call shared state).

    `encode_special_tokens` makes the tokenizer read control tokens such as `<|im_end|>` as plain text, so callers
    cannot forge a prompt. Control tokens of our own templates are put in by id.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._fast = Fast.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{file.name} cannot be read: {error}") from None
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = True
        self._cuts = Cuts(self._fast)
        self.vocab_size: int = self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, no special tokens added. Many run in parallel, and without the GIL."""
        lengths = [len(text) for text in texts]
        together = sum(lengths) > _FEW and max(lengths) < _VERY_LONG
        return [
            np.array(encoding.ids, dtype=np.int32)
            for batch in ([texts] if together else [[text] for text in texts])
            for encoding in self._fast.encode_batch_fast(batch, add_special_tokens=False)
        ]

    def encode_ends(self, texts: Sequence[str], first: int, last: int, pause: Pause) -> list[Ids]:
        """The same, but of long texts only the ends are read: at least the `first` and the `last` ids are those of the
        whole, and more than `first + last` are given if there are more. `pause` is called between pieces of work."""
        return encode_ends(self.encode, self._cuts, texts, first, last, pause)

    def template(self, text: str) -> Ids:
        """Token ids of a trusted template, in which `<|…|>` are control tokens."""
        pieces = [piece for piece in _CONTROL.split(text) if piece]
        ids = [
            np.array([self.single(piece)], np.int32) if _CONTROL.fullmatch(piece) else self.encode([piece])[0]
            for piece in pieces
        ]
        return np.concatenate(ids)

    def single(self, text: str) -> int:
        """The id of a text that must be exactly one token."""
        known: int | None = self._fast.token_to_id(text)
        if known is not None and _CONTROL.fullmatch(text):
            return known
        ids = self.encode([text])[0]
        if len(ids) != 1:
            raise CheckpointError(f"tokenizer.json: {text!r} is not a single token")
        return int(ids[0])


def is_encodable(text: str) -> bool:
    """False for lone surrogates, which no UTF-8 text can hold."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
