"""The exact token arrays that Qwen3-Embedding and Qwen3-Reranker were trained on, around the caller's text."""

import hashlib
from collections.abc import Sequence

import numpy as np

from services.engine.errors import CheckpointError, InvalidInput
from services.engine.text.ends import Pause
from services.engine.text.prompts import Prompt, checked, compare, encode_between, encode_each, never, too_long, within
from services.engine.text.tokenizer import Tokenizer
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

_RERANK_MARKS = ("<|im_start|>", "<|im_end|>")  # which separate the caller's texts from ours
_PROBE = "what is gravity, if not a force?"
_NO_LIMIT = 1 << 20

TEMPLATE_VERSION = hashlib.sha256(
    "\0".join([EMBED_QUERY, EMBED_END, RERANK_PREFIX, RERANK_BODY, RERANK_SUFFIX]).encode()
).hexdigest()[:12]


class EmbedPrompts:
    """`text` or `Instruct: {instruction}\\nQuery:{text}`, then exactly one `<|endoftext|>`, which is never cut."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._end = np.array([tokenizer.control(EMBED_END)], np.int32)
        tokenizer.template(EMBED_QUERY.format(instruction=DEFAULT_INSTRUCTION))

    def check(self) -> None:
        """Compares with what the tokenizer makes of the whole prompt by itself. Raises CheckpointError."""
        (built,) = self.build(
            [_PROBE], input_type=InputType.QUERY, instruction=None, truncation=Truncation.END, max_tokens=_NO_LIMIT
        )
        compare(self._tokenizer, EMBED_QUERY.format(instruction=DEFAULT_INSTRUCTION) + _PROBE + EMBED_END, built)

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
            head = EMBED_QUERY.format(instruction=checked("instruction", instruction or default))
            head_ids = self._tokenizer.encode_ends([head], max_tokens, 0, pause)[0]
            within(self._tokenizer, "instruction", head_ids)
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
                    return too_long(f"texts[{index}]", len(ids) + len(self._end), max_tokens)
                case Truncation.END:
                    kept = ids[:room]
                case Truncation.START:
                    # The head's own tokens, then the text's last ones: read back, they are the head and a tail of the
                    # text. The joint tokens would not do: the last of the head may hold the start of the text
                    # (":what" is one piece), which is cut.
                    kept = np.concatenate([head_ids, ids[len(ids) - (room - len(head_ids)) :]])
            return Prompt(np.concatenate([kept, self._end]), truncated=True)

        first, last = (len(head_ids), room) if truncation is Truncation.START else (room, 0)
        return encode_each(self._tokenizer, "texts", texts, head, finish, first, last, pause)


class RerankPrompts:
    """System prompt, instruction and query shared by all documents; then `" " + document`; then the suffix.

    Splitting between `<Document>:` and the space gives the tokens of the joint text; after the space it would not.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        for mark in _RERANK_MARKS:
            tokenizer.control(mark)
        self._prefix = tokenizer.template(RERANK_PREFIX)
        self._suffix = tokenizer.template(RERANK_SUFFIX)
        self.yes_id, self.no_id = tokenizer.single("yes"), tokenizer.single("no")
        if self.yes_id == self.no_id:
            raise CheckpointError("tokenizer.json: 'yes' and 'no' are the same token")

    def check(self) -> None:
        """Compares with what the tokenizer makes of the whole prompt by itself. Raises CheckpointError."""
        _, (built,) = self.build(_PROBE, [_PROBE], instruction=None, truncation=Truncation.END, max_tokens=_NO_LIMIT)
        body = RERANK_BODY.format(instruction=DEFAULT_INSTRUCTION, query=_PROBE)
        compare(self._tokenizer, f"{RERANK_PREFIX}{body} {_PROBE}{RERANK_SUFFIX}", built)

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

        Raises InvalidInput for the whole request if instruction and query leave no room for a document; it names the
        longer of the two.
        """
        task = checked("instruction", instruction or DEFAULT_INSTRUCTION)
        body = RERANK_BODY.format(instruction=task, query=checked("query", query))

        def read(text: str) -> Ids:
            return self._tokenizer.encode_ends([text], max_tokens, 0, pause)[0]

        shared = np.concatenate([self._prefix, read(body)])
        fixed = len(shared) + len(self._suffix)
        room = max_tokens - fixed
        if room < 1:
            field = "instruction" if instruction and len(instruction.encode()) > len(query.encode()) else "query"
            raise InvalidInput(
                field, f"with its prompt it takes {fixed} tokens or more of {max_tokens}: no room is left"
            )
        if self._tokenizer.beyond(shared):
            for name, text in (("instruction", task), ("query", query)):
                within(self._tokenizer, name, read(text))
            within(self._tokenizer, "query", shared)

        return len(shared), encode_between(
            self._tokenizer, documents, " ", shared, self._suffix, truncation, max_tokens, pause
        )
