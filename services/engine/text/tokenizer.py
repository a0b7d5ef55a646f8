"""Text → token ids with the plain `tokenizers` library."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Fast
from tokenizers.models import Unigram

from services.engine.checkpoint.folder import refuse_placeholder
from services.engine.errors import CheckpointError
from services.engine.text.cuts import Cuts
from services.engine.text.ends import Pause, encode_ends
from services.engine.text.spaces import Spaces, parts_at_spaces
from services.engine.types import Ids

# Characters. The library computes several texts on threads of its own, which all callers share, and one text on the
# caller's: there, few are quick and never wait, and a very long one keeps nobody waiting.
_FEW, _VERY_LONG = 2000, 1 << 17


@dataclass(frozen=True, slots=True)
class PairFrame:
    """What a post-processor puts around the two texts of a pair, and its type for each token."""

    before: Ids
    between: Ids
    after: Ids
    before_types: Ids
    first_type: int
    between_types: Ids
    second_type: int
    after_types: Ids

    def types(self, first: int, tokens: int) -> Ids:
        """Those of a pair of `tokens` tokens, of which the first text has `first`."""
        second = tokens - first - len(self.before) - len(self.between) - len(self.after)
        return np.concatenate(
            [
                self.before_types,
                np.full(first, self.first_type, np.int32),
                self.between_types,
                np.full(second, self.second_type, np.int32),
                self.after_types,
            ]
        )


class Tokenizer:
    """Thread-safe: nothing is set after construction (`enable_truncation` would be per-call shared state).

    Only the added tokens of tokenizer.json say which texts are tokens of their own. Those flagged `special`
    (`<|im_end|>` and its kin) are read as plain text in a caller's text (`encode_special_tokens`), so callers cannot
    forge a prompt; the others (`<think>`, `<tool_call>`, …) are one token in any text, as the reference reads them.

    `rows`: of the model's embedding table. `beyond` names tokens past them.
    """

    def __init__(self, file: Path, rows: int | None = None) -> None:
        refuse_placeholder(file)
        self._file, self._fast = file, _without_control_pieces(_read(file))
        self._fast.encode_special_tokens = True
        self._cuts = Spaces() if parts_at_spaces(self._fast) else Cuts(self._fast)
        self._added = {token.content: id for id, token in self._fast.get_added_tokens_decoder().items()}
        self._special = {token.content for token in self._fast.get_added_tokens_decoder().values() if token.special}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if self._added else None
        self.vocab_size: int = max(self._fast.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.rows = self.vocab_size if rows is None else rows

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
        """Token ids of a trusted template, in which every added token counts as such."""
        pieces = [piece for piece in self._control.split(text) if piece] if self._control else [text]
        ids = [
            np.array([self._added[piece]], np.int32) if piece in self._added else self.encode([piece])[0]
            for piece in pieces
        ]
        return self._known(np.concatenate(ids))

    def single(self, text: str) -> int:
        """The id of a trusted text that must be exactly one token."""
        ids = self.template(text) if text else np.empty(0, np.int32)
        if len(ids) != 1:
            raise CheckpointError(f"tokenizer.json: {text!r} is not a single token")
        return int(ids[0])

    def control(self, text: str) -> int:
        """The id of a token that no caller's text may hold. Raises CheckpointError if it is not a special one."""
        if text not in self._special:
            raise CheckpointError(f"tokenizer.json: {text!r} is not a special added token, so any text could forge it")
        return self.single(text)

    def parsed(self, text: str) -> Ids:
        """Token ids of a trusted text as the reference parses it. Reads the file anew: only for checks at the start."""
        return np.array(_read(self._file).encode(text, add_special_tokens=False).ids, np.int32)

    def reference(self, text: str, pair: str | None = None) -> tuple[Ids, Ids]:
        """The same with the tokens that the post-processor adds, of a text or a pair; and the tokens' types."""
        encoding = _read(self._file).encode(text, pair)
        return np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)

    def framed(self) -> tuple[Ids, Ids]:
        """What tokenizer.json's own post-processor puts before and after a text."""
        marker = self._fast.encode("a", add_special_tokens=False).ids
        ids = self._fast.encode("a", add_special_tokens=True).ids
        at = next((i for i in range(len(ids)) if ids[i : i + len(marker)] == marker), None)
        if at is None:
            raise CheckpointError("tokenizer.json: the post_processor changes the text's own tokens")
        return self._known(np.array(ids[:at], np.int32)), self._known(np.array(ids[at + len(marker) :], np.int32))

    def framed_pair(self) -> PairFrame:
        """What it puts around two texts."""
        first, second = self.encode(["a", "b"])
        encoding = self._fast.encode("a", "b", add_special_tokens=True)
        ids, types = np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)
        own = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)  # sequence_ids are wrong in some processors
        if len(own) != len(first) + len(second) or not np.array_equal(ids[own], np.concatenate([first, second])):
            raise CheckpointError(
                "tokenizer.json: the post_processor does not put the texts of a pair one after another"
            )
        a, b = own[0], own[len(first)]
        parts = slice(a), slice(a + len(first), b), slice(b + len(second), None)
        before, between, after = (self._known(ids[part]) for part in parts)
        before_types, between_types, after_types = (types[part] for part in parts)
        return PairFrame(
            before, between, after, before_types, int(types[a]), between_types, int(types[b]), after_types
        )  # fmt: skip

    @property
    def has_post_processor(self) -> bool:
        """Whether tokenizer.json says anything about tokens to add."""
        return self._fast.post_processor is not None

    def forgeable(self, ids: Iterable[int]) -> str | None:
        """The first of these tokens that a text holds which only spells it, if there is one."""
        for id in map(int, ids):
            token = str(self._fast.id_to_token(id)).strip()  # as it was before `_without_control_pieces`
            if id in self.encode([token])[0]:
                return token
        return None

    def beyond(self, ids: Ids) -> str | None:
        """The first token for which the model has no row, if there is one."""
        if self.vocab_size <= self.rows or not len(ids) or ids.max() < self.rows:
            return None
        return str(self._fast.id_to_token(int(ids[ids >= self.rows][0])))

    def _known(self, ids: Ids) -> Ids:
        """Raises CheckpointError for a template's token that the model does not have."""
        if token := self.beyond(ids):
            id = self._fast.token_to_id(token)
            raise CheckpointError(
                f"tokenizer.json: the prompt's {token!r} is token {id}, the model's vocabulary only {self.rows}"
            )
        return ids


def _read(file: Path) -> Fast:
    try:
        fast = Fast.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{file.name} cannot be read: {error}") from None
    fast.no_truncation()
    fast.no_padding()
    return fast


def _without_control_pieces(fast: Fast) -> Fast:
    """Unigram finds control tokens in plain text too, as pieces of its vocabulary, and prefers them. Here it does not:
    they are renamed to what no text holds, since a space is no space any more where pieces are looked for."""
    if not isinstance(fast.model, Unigram):
        return fast
    state = json.loads(fast.to_str())
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["special"]]
    for piece in state["model"]["vocab"]:
        if piece[0] in special:
            piece[0] = f" {piece[0]} "
    return Fast.from_str(json.dumps(state))


def is_encodable(text: str) -> bool:
    """False for lone surrogates, which no UTF-8 text can hold."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
