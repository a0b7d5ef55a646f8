"""The exact prompts of Qwen3-Embedding and Qwen3-Reranker, from their model cards."""

from __future__ import annotations

TASK = "Given a web search query, retrieve relevant passages that answer the query"
RERANK_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
RERANK_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def embed_query(query: str, task: str | None = TASK) -> str:
    """The prompt of a query for the embedder. There is no space after `Query:`. Documents have no prompt."""
    return query if task is None else f"Instruct: {task}\nQuery:{query}"


def rerank_head(query: str, task: str = TASK) -> str:
    """The part of the reranker's prompt that is common to all documents of a request."""
    return f"<Instruct>: {task}\n<Query>: {query}\n<Document>:"
