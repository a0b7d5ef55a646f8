"""Prompts that are plain strings before a text, in the frame that the tokenizer's own post-processor adds."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from services.engine.errors import CheckpointError, InvalidInput
from services.engine.text.ends import Pause
from services.engine.text.prompts import Prompt, checked, encode_each, never, too_long, within
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Failure, Ids, InputType, Truncation

INSTRUCTION = "{instruction}"
"""Stands for a request's instruction in the prompt of a query."""
NO_INSTRUCTIONS = "this model takes no instructions; leave it out"

_PROBE = "what is gravity, if not a force?"
_NO_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """What is put before texts."""

    query: str = ""  # with INSTRUCTION in it if the model takes instructions
    document: str = ""
    instruction: str = ""  # the default
    symmetric: str | None = ""  # the instruction, or without instructions the prompt; None: the model has none
    end: str = ""  # a special token that ends every text, whether or not the tokenizer adds it

    @property
    def instructions(self) -> bool:
        """Whether a request may bring an instruction."""
        return INSTRUCTION in self.query

    @property
    def input_types(self) -> tuple[InputType, ...]:
        """What a text can be embedded as."""
        some = (InputType.DOCUMENT, InputType.QUERY)
        return some if self.symmetric is None else (*some, InputType.SYMMETRIC)

    @property
    def version(self) -> str:
        """Changes if the prompts do."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def before(self, input_type: InputType, instruction: str | None) -> str:
        """What stands before a text. Raises InvalidInput for what the model has not."""
        if instruction and not self.instructions:
            raise InvalidInput("instruction", NO_INSTRUCTIONS)
        if input_type is InputType.DOCUMENT:
            if instruction:
                raise InvalidInput("instruction", "documents are embedded without one; set input_type to QUERY")
            return self.document
        if input_type is InputType.SYMMETRIC and self.symmetric is None:
            raise InvalidInput("input_type", "this model has no prompt for SYMMETRIC; send QUERY and DOCUMENT")
        default = self.symmetric if input_type is InputType.SYMMETRIC else self.instruction
        if self.instructions:
            return self.query.replace(INSTRUCTION, checked("instruction", instruction or default or ""))
        return default or "" if input_type is InputType.SYMMETRIC else self.query


class PlainPrompts:
    """`{prompt}{text}` between the tokens that the tokenizer puts around every text, which are never cut.

    Special tokens in a caller's text are plain text, also where sentence-transformers would parse them.
    """

    def __init__(self, tokenizer: Tokenizer, wording: Wording) -> None:
        self._tokenizer, self._wording = tokenizer, wording
        self._first, its_end = tokenizer.framed()
        self._added = np.empty(0, np.int32)  # what tokenizer.json lacks
        if wording.end and its_end[-1:].tolist() != [end := tokenizer.control(wording.end)]:
            self._added = np.array([end], np.int32)
        self._end = np.concatenate([its_end, self._added])

    def check(self) -> None:
        """Compares with what the tokenizer makes of whole prompts by itself. Raises CheckpointError."""
        for input_type in self._wording.input_types:
            head = self._wording.before(input_type, None)
            (built,) = self.build(
                [_PROBE], input_type=input_type, instruction=None, truncation=Truncation.END, max_tokens=_NO_LIMIT
            )
            whole, _ = self._tokenizer.reference(head + _PROBE)
            whole = np.concatenate([whole, self._added])
            if isinstance(built, Failure) or not np.array_equal(built.tokens, whole):
                raise CheckpointError(
                    f"tokenizer.json: self-check failed: the tokens of {head + _PROBE!r} are not those of the tokenizer"
                    " itself: an added token parts it elsewhere. Give the tokenizer.json of the model's training"
                )

    def build(
        self,
        texts: Sequence[str],
        *,
        input_type: InputType,
        instruction: str | None,
        truncation: Truncation,
        max_tokens: int,
        pause: Pause = never,
    ) -> list[Prompt | Failure]:
        """See EmbedTemplate."""
        head, head_ids = self._wording.before(input_type, instruction), np.empty(0, np.int32)
        frame = len(self._first) + len(self._end)
        room = max_tokens - frame
        if head:
            head_ids = self._tokenizer.encode_ends([head], max_tokens, 0, pause)[0]
            within(self._tokenizer, "instruction", head_ids)
        if len(head_ids) >= room:
            field = "instruction" if instruction else "max_tokens"
            taken = len(head_ids) + frame
            raise InvalidInput(field, f"{taken} tokens or more leave no room for text within {max_tokens}")

        def finish(index: int, ids: Ids) -> Prompt | Failure:
            if not len(ids) + frame:
                return Failure(InvalidInput(f"texts[{index}]", "is empty, and this model adds no token to a text"))
            cut = len(ids) > room
            if cut and truncation is Truncation.ERROR:
                return too_long(f"texts[{index}]", len(ids) + frame, max_tokens)
            if cut and truncation is Truncation.START:
                # The head's own tokens, then the text's last ones: read back, they are the head and a tail of the text.
                # The joint tokens would not do: the last of the head may hold the start of the text, which is cut.
                ids = np.concatenate([head_ids, ids[len(ids) - (room - len(head_ids)) :]])
            return Prompt(np.concatenate([self._first, ids[:room], self._end]), truncated=cut)

        first, last = (len(head_ids), room) if truncation is Truncation.START else (room, 0)
        return encode_each(self._tokenizer, "texts", texts, head, finish, first, last, pause)
