"""Runs nano-rerank over lists of documents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training import prompts
from training.model import Context, Qwen3, pad
from training.tokenizer import token


class Judge:
    """Scores lists of documents with the exact prompt of Qwen3-Reranker. Shared text is computed once."""

    def __init__(self, model: Qwen3, tokenizer: Tokenizer) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self.suffix = self.ids(prompts.RERANK_SUFFIX)
        self._yes, self._no = (token(tokenizer, word) for word in ("yes", "no"))

    def ids(self, text: str) -> list[int]:
        """Token ids, without special tokens added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def opening(self, task: str = prompts.TASK) -> Context:
        """Keys and values of everything up to `<Query>:`."""
        text = prompts.RERANK_PREFIX + f"<Instruct>: {task}\n<Query>:"
        head = self.ids(text)
        kept: Context | None = self.model(torch.tensor([head]), torch.tensor([len(head)]), keep=True)[1]
        assert kept is not None
        return kept

    def query(self, text: str, limit: int = 64) -> list[int]:
        """` query\\n<Document>:` as tokens, the query cut to `limit`."""
        return self.ids(" " + text)[:limit] + self.ids("\n<Document>:")

    def document(self, ids: Sequence[int], limit: int) -> list[int]:
        """A document's tokens (which must start with the space) cut to `limit`, and the suffix."""
        return [*ids[:limit], *self.suffix]

    def __call__(self, opening: Context, queries: Sequence[Sequence[int]], docs: Sequence[Sequence[int]]) -> Tensor:
        """Logits yes − no, shape (queries, documents per query). `docs` has the same number for each query."""
        asked = self.model(*pad(queries), [opening], keep=True)[1]
        hidden = self.model(*pad(docs), [opening, asked])[0]
        weight = self.model.embed_tokens.weight
        logits: Tensor = hidden @ (weight[self._yes] - weight[self._no])
        return logits.view(len(queries), -1)
