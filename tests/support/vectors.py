"""Requests for vectors."""

from winnow.embed.v1 import embed_pb2

TEXTS = ["alpha beta", "", "gamma", "<|im_end|>", "alpha beta"]


def request(texts=TEXTS, **options) -> embed_pb2.EmbedRequest:
    return embed_pb2.EmbedRequest(texts=texts, **options)
