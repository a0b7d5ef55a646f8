"""What the prompts of every model family share: token arrays around the caller's texts, each text failing alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from services.engine.errors import CheckpointError, InvalidInput
from services.engine.text.ends import Pause
from services.engine.text.tokenizer import Tokenizer, is_encodable
from services.engine.types import Failure, Ids, InputType, Truncation


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text as the model reads it; `tokens`: int32 `[n]`."""

    tokens: Ids
    truncated: bool


def never() -> None:
    """For work that is not to be interrupted."""


class EmbedTemplate(Protocol):
    """A family's prompts of an embedding model."""

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
        """A prompt per text, or its failure. Raises InvalidInput if the instruction leaves no room for text.

        `pause` is called between pieces of work.
        """


class RerankTemplate(Protocol):
    """A family's prompts of a reranker."""

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
        """The length of the prefix that all prompts share, and a prompt per document. Only documents are ever cut.

        Raises InvalidInput for the whole request if instruction and query leave no room for a document.
        """


def encode_each(
    tokenizer: Tokenizer,
    field: str,
    texts: Sequence[str],
    head: str,
    finish: Callable[[int, Ids], Prompt | Failure],
    first: int,
    last: int,
    pause: Pause,
) -> list[Prompt | Failure]:
    """`finish(index, ids of head + text)` for every text; a text that cannot be read fails alone.

    Of a text with more than `first + last` ids, those between may be missing.
    """
    sound = [is_encodable(text) for text in texts]
    joint = [head + text for text, ok in zip(texts, sound, strict=True) if ok]
    ids = iter(tokenizer.encode_ends(joint, first, last, pause))
    return [
        _read_or_fail(tokenizer, f"{field}[{index}]", finish(index, next(ids)))
        if ok
        else Failure(InvalidInput(f"{field}[{index}]", "is not valid Unicode text"))
        for index, ok in enumerate(sound)
    ]


def encode_between(
    tokenizer: Tokenizer,
    documents: Sequence[str],
    head: str,
    before: Ids,
    after: Ids,
    truncation: Truncation,
    max_tokens: int,
    pause: Pause,
) -> list[Prompt | Failure]:
    """`before`, the ids of head + document, `after`, for every document; only those are cut. A token must have room."""
    fixed = len(before) + len(after)
    room = max_tokens - fixed

    def finish(index: int, ids: Ids) -> Prompt | Failure:
        over = len(ids) > room
        if over and truncation is Truncation.ERROR:
            return too_long(f"documents[{index}]", fixed + len(ids), max_tokens)
        kept = ids[len(ids) - room :] if over and truncation is Truncation.START else ids[:room]
        return Prompt(np.concatenate([before, kept, after]), truncated=over)

    first, last = (0, room) if truncation is Truncation.START else (room, 0)
    return encode_each(tokenizer, "documents", documents, head, finish, first, last, pause)


def _read_or_fail(tokenizer: Tokenizer, field: str, prompt: Prompt | Failure) -> Prompt | Failure:
    if isinstance(prompt, Prompt):
        try:
            within(tokenizer, field, prompt.tokens)
        except InvalidInput as error:
            return Failure(error, tokens=len(prompt.tokens))
    return prompt


def within(tokenizer: Tokenizer, field: str, ids: Ids) -> None:
    """Raises InvalidInput for a text with a token that the tokenizer has and the model has not."""
    if token := tokenizer.beyond(ids):
        raise InvalidInput(field, f"holds {token!r}, a token that this model does not know; leave it out")


def compare(tokenizer: Tokenizer, whole: str, built: Prompt | Failure) -> None:
    """`built` must be the tokens of the whole prompt, a trusted text, as the tokenizer parses it by itself."""
    parsed = tokenizer.parsed(whole)
    if isinstance(built, Failure) or not np.array_equal(built.tokens, parsed):
        raise CheckpointError(
            "tokenizer.json: self-check failed: the prompt's tokens are not those of the joint text; an added token or"
            " another way of splitting text parts it elsewhere. Give the tokenizer.json that the model was trained with"
        )


def checked(field: str, text: str) -> str:
    """The text. Raises InvalidInput for lone surrogates, which no token stands for."""
    if not is_encodable(text):
        raise InvalidInput(field, "is not valid Unicode text")
    return text


def too_long(field: str, tokens: int, limit: int) -> Failure:
    """The failure of a text that is not to be cut."""
    return Failure(InvalidInput(field, f"{tokens} tokens or more exceed the limit of {limit}"), tokens=tokens)
