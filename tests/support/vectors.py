"""Requests for vectors."""

from collections.abc import Sequence
from typing import Any

from winnow.embed.v1 import embed_pb2

TEXTS = ["alpha beta", "", "gamma", "<|im_end|>", "alpha beta"]


def request(texts: Sequence[str] = TEXTS, **options: Any) -> embed_pb2.EmbedRequest:
    return embed_pb2.EmbedRequest(texts=texts, **options)
