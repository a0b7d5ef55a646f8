"""Pairs of a query and a document, in the frame that the tokenizer's own post-processor adds."""

from collections.abc import Sequence

import numpy as np

from services.engine.errors import CheckpointError, InvalidInput
from services.engine.text.ends import Pause
from services.engine.text.prompts import Prompt, checked, encode_between, never, within
from services.engine.text.templates import NO_INSTRUCTIONS
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Failure, Truncation

_PROBE = "what is gravity, if not a force?", "gravity is a force, and attracts"
_NO_LIMIT = 1 << 20


class PairPrompts:
    """`[CLS] query [SEP] document [SEP]`, or what the tokenizer makes of a pair. Only the document is ever cut:
    sentence-transformers would cut the longer of the two, so that a long query had another score with each document.

    A token of the type t stands as `id + t · types_apart`: the forward pass divides it again.
    """

    def __init__(self, tokenizer: Tokenizer, types_apart: int) -> None:
        """`types_apart`: the rows of the model's embedding table; 0 if it has one type of tokens, or none."""
        self._tokenizer, self._types_apart = tokenizer, types_apart
        self._frame = tokenizer.framed_pair()

    def check(self) -> None:
        """Compares with what the tokenizer makes of a whole pair by itself. Raises CheckpointError."""
        query, document = _PROBE
        _, (built,) = self.build(query, [document], instruction=None, truncation=Truncation.END, max_tokens=_NO_LIMIT)
        ids, types = self._tokenizer.reference(query, document)
        if isinstance(built, Failure) or not np.array_equal(built.tokens, ids + types * self._types_apart):
            raise CheckpointError(
                f"tokenizer.json: self-check failed: the tokens of the pair {_PROBE!r} are not those of the tokenizer"
                " itself; give the tokenizer.json that the model was trained with"
            )

    def build(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None,
        truncation: Truncation,
        max_tokens: int,
        pause: Pause = never,
    ) -> tuple[int, list[Prompt | Failure]]:
        """See RerankTemplate. Nothing is shared: the query's states depend on the document."""
        if instruction:
            raise InvalidInput("instruction", NO_INSTRUCTIONS)
        frame = self._frame
        ids = self._tokenizer.encode_ends([checked("query", query)], max_tokens, 0, pause)[0]
        within(self._tokenizer, "query", ids)
        before = np.concatenate([frame.before, ids, frame.between])
        fixed = len(before) + len(frame.after)
        room = max_tokens - fixed
        if room < 1:
            raise InvalidInput("query", f"it takes {fixed} tokens or more of {max_tokens}: no room is left")

        built = encode_between(self._tokenizer, documents, "", before, frame.after, truncation, max_tokens, pause)
        return 0, [self._typed(prompt, len(ids)) if isinstance(prompt, Prompt) else prompt for prompt in built]

    def _typed(self, prompt: Prompt, query: int) -> Prompt:
        types = self._frame.types(query, len(prompt.tokens))
        return Prompt(prompt.tokens + types * np.int32(self._types_apart), prompt.truncated)
