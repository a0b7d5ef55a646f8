"""Prompts as training needs them: the parts that the engine serves, before a tokenizer exists."""

from __future__ import annotations

from services.engine.models.qwen3.prompts import (
    DEFAULT_INSTRUCTION,
    EMBED_QUERY,
    RERANK_BODY,
    RERANK_PREFIX,
    RERANK_SUFFIX,
)

__all__ = ["RERANK_PREFIX", "RERANK_SUFFIX", "TASK", "embed_query", "rerank_head"]

TASK = DEFAULT_INSTRUCTION


def embed_query(query: str, task: str | None = TASK) -> str:
    """A query as the embedder reads it; documents are embedded raw."""
    return query if task is None else EMBED_QUERY.format(instruction=task) + query


def rerank_head(query: str, task: str = TASK) -> str:
    """The part of the reranker's body that all documents of a request share."""
    return RERANK_BODY.format(instruction=task, query=query)
