"""The exact token arrays that Qwen3-Embedding and Qwen3-Reranker were trained on, around the caller's text."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.engine.ends import Pause
from services.engine.errors import CheckpointError, InvalidInput
from services.engine.tokenizer import Tokenizer, is_encodable
from services.engine.types import Failure, Ids, InputType, Truncation

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
SYMMETRIC_INSTRUCTION = "Retrieve semantically similar text"

# Source: the model cards. No space after "Query:"; "\n" (not "\n\n") between the reranker's fields.
EMBED_QUERY = "Instruct: {instruction}\nQuery:"
EMBED_END = "<|endoftext|>"
RERANK_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct"
    ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
RERANK_BODY = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>:"
RERANK_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

TEMPLATE_VERSION = hashlib.sha256(
    "\0".join([EMBED_QUERY, EMBED_END, RERANK_PREFIX, RERANK_BODY, RERANK_SUFFIX]).encode()
).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text as the model reads it; `tokens`: int32 `[n]`."""

    tokens: Ids
    truncated: bool


def never() -> None:
    """For work that is not to be interrupted."""


class EmbedPrompts:
    """`text` or `Instruct: {instruction}\\nQuery:{text}`, then exactly one `<|endoftext|>`, which is never cut."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._end = np.array([tokenizer.single(EMBED_END)], np.int32)

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
        """Raises InvalidInput for the whole request if the instruction leaves no room for text.

        `pause` is called between pieces of work, here and below.
        """
        head, head_ids = "", np.empty(0, np.int32)
        if input_type is not InputType.DOCUMENT:
            default = SYMMETRIC_INSTRUCTION if input_type is InputType.SYMMETRIC else DEFAULT_INSTRUCTION
            head = EMBED_QUERY.format(instruction=_checked("instruction", instruction or default))
            head_ids = self._tokenizer.encode_ends([head], max_tokens, 0, pause)[0]
        elif instruction:
            raise InvalidInput("instruction", "documents are embedded without one; set input_type to QUERY")
        room = max_tokens - len(self._end)
        if head and len(head_ids) >= room:
            raise InvalidInput(
                "instruction", f"{len(head_ids)} tokens or more leave no room for text within {max_tokens}"
            )

        def finish(index: int, ids: Ids) -> Prompt | Failure:
            if len(ids) <= room:
                return Prompt(np.concatenate([ids, self._end]), truncated=False)
            match truncation:
                case Truncation.ERROR:
                    return _too_long(f"texts[{index}]", len(ids) + len(self._end), max_tokens)
                case Truncation.END:
                    kept = ids[:room]
                case Truncation.START:
                    # The head stays. It shares its last token with the text (":what" is one piece), so it is
                    # measured on the joint tokens.
                    shared = common_prefix(head_ids, ids)
                    kept = np.concatenate([ids[:shared], ids[len(ids) - (room - shared) :]])
            return Prompt(np.concatenate([kept, self._end]), truncated=True)

        first, last = (len(head_ids), room) if truncation is Truncation.START else (room, 0)
        return _encode_each(self._tokenizer, "texts", texts, head, finish, first, last, pause)


class RerankPrompts:
    """System prompt, instruction and query shared by all documents; then `" " + document`; then the suffix.

    Splitting between `<Document>:` and the space gives the tokens of the joint text; after the space it would not.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._prefix = tokenizer.template(RERANK_PREFIX)
        self._suffix = tokenizer.template(RERANK_SUFFIX)
        self.yes_id, self.no_id = tokenizer.single("yes"), tokenizer.single("no")
        if self.yes_id == self.no_id:
            raise CheckpointError("tokenizer.json: 'yes' and 'no' are the same token")

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
        """The length of the shared prefix, and a prompt per document. Only documents are ever cut.

        Raises InvalidInput for the whole request if instruction and query leave no room for a document.
        """
        body = RERANK_BODY.format(
            instruction=_checked("instruction", instruction or DEFAULT_INSTRUCTION), query=_checked("query", query)
        )
        shared = np.concatenate([self._prefix, self._tokenizer.encode_ends([body], max_tokens, 0, pause)[0]])
        fixed = len(shared) + len(self._suffix)
        room = max_tokens - fixed
        if room < 1:
            raise InvalidInput(
                "query", f"with its prompt it takes {fixed} tokens or more of {max_tokens}: no room is left"
            )

        def finish(index: int, ids: Ids) -> Prompt | Failure:
            over = len(ids) > room
            if over and truncation is Truncation.ERROR:
                return _too_long(f"documents[{index}]", fixed + len(ids), max_tokens)
            kept = ids[len(ids) - room :] if over and truncation is Truncation.START else ids[:room]
            return Prompt(np.concatenate([shared, kept, self._suffix]), truncated=over)

        first, last = (0, room) if truncation is Truncation.START else (room, 0)
        return len(shared), _encode_each(self._tokenizer, "documents", documents, " ", finish, first, last, pause)


def common_prefix(a: Ids, b: Ids) -> int:
    """How many leading tokens `a` and `b` share."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n


def _encode_each(
    tokenizer: Tokenizer,
    field: str,
    texts: Sequence[str],
    head: str,
    finish: Callable[[int, Ids], Prompt | Failure],
    first: int,
    last: int,
    pause: Pause,
) -> list[Prompt | Failure]:
    """`finish(index, ids of head + text)` for every text; a text that is not Unicode fails alone.

    Of a text with more than `first + last` ids, those between may be missing.
    """
    sound = [is_encodable(text) for text in texts]
    joint = [head + text for text, ok in zip(texts, sound, strict=True) if ok]
    ids = iter(tokenizer.encode_ends(joint, first, last, pause))
    return [
        finish(index, next(ids)) if ok else Failure(InvalidInput(f"{field}[{index}]", "is not valid Unicode text"))
        for index, ok in enumerate(sound)
    ]


def _checked(field: str, text: str) -> str:
    if not is_encodable(text):
        raise InvalidInput(field, "is not valid Unicode text")
    return text


def _too_long(field: str, tokens: int, limit: int) -> Failure:
    return Failure(InvalidInput(field, f"{tokens} tokens or more exceed the limit of {limit}"))
