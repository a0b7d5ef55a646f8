"""The calls of a load, and whether their answers are right. No two send the same text, so no cache answers them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import grpc
import numpy as np

from bench.reliability.certificates import NAME, credentials
from bench.texts import Writer
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

KINDS = ("embed", "rerank", "inline", "search")
COLLECTION = "chaos"
_TEXTS = 200  # different ones; each call puts a number before its own
_AGAIN_S, _PAUSE_S = 60.0, 0.2  # a worker that was killed in the row may still load
_TOLERANCE = 1e-4  # of a vector's numbers or a logit: rounding depends on what is computed beside a text

RETRIES = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}  # fmt: skip
ONCE: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}


def options(config: dict[str, Any], tls: str = "") -> list[tuple[str, Any]]:
    """Of a channel with connections of its own to every address of its target, which are soon tried again."""
    # A target of several addresses is nobody's name.
    named = [("grpc.ssl_target_name_override", NAME)] if tls else []
    return [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.service_config", json.dumps(config)),
        *named,
    ]


def channel(target: str, config: dict[str, Any], tls: str = "") -> grpc.aio.Channel:
    """A channel with these options; `tls`: the folder of certificates and token, or none."""
    if tls:
        return grpc.aio.secure_channel(target, credentials(tls), options(config, tls))
    return grpc.aio.insecure_channel(target, options(config))


def target(addresses: Iterable[str]) -> str:
    """The gRPC target of several HOST:PORT, all of them replicas."""
    return "ipv4:" + ",".join(addresses)


class Calls:
    """Makes calls of one kind. An embedded text has `words`, a rerank or search `documents` of `document_words`."""

    def __init__(self, kind: str, seed: int, words: int, documents: int, document_words: int, token: str) -> None:
        writer = Writer(seed)
        self._kind, self._prefix = kind, f"{seed % 100_000}"
        self._texts = [writer.of_words(words) for _ in range(_TEXTS)]
        self._documents = [writer.of_words(document_words) for _ in range(_TEXTS)]
        self._count = documents
        self._metadata = [("authorization", f"Bearer {token}")] if token else []

    def request(self, number: int) -> Any:
        """The call's request."""
        own = f"{number} {self._prefix}"
        if self._kind == "embed":
            return embed_pb2.EmbedRequest(texts=[f"{own} {self._texts[number % _TEXTS]}"])
        query = f"{own} what does the river do in summer"
        documents = [
            f"{place} {own} {self._documents[(number + place) % _TEXTS]}"
            for place in range(0 if self._kind == "search" else self._count)
        ]
        if self._kind == "rerank":
            return rerank_pb2.RerankRequest(query=query, documents=documents)
        request = retrieval_pb2.SearchRequest(query=query, candidates=self._count, top_n=min(10, self._count))
        if self._kind == "search":
            request.collection.name = COLLECTION
        else:
            request.documents.documents.extend(retrieval_pb2.Document(text=text) for text in documents)
        return request

    def send(self, channel: grpc.aio.Channel, number: int, timeout: float) -> Awaitable[Any]:
        """Starts the call."""
        return self._method(channel)(self.request(number), timeout=timeout, metadata=self._metadata)

    def error(self, answer: Any) -> str:
        """Code of the first item that failed, or an empty string."""
        items = answer.results if self._kind == "embed" else answer.errors if self._kind == "rerank" else ()
        codes = (item.error.code for item in items if item.HasField("error"))
        names = {code.value[0]: code.name for code in grpc.StatusCode}
        return next((names.get(code, "UNKNOWN") for code in codes), "")

    async def right(self, answer: Any, number: int, worker: grpc.aio.Channel | None) -> bool:
        """Whether the answer is this call's: that of a worker which computes it once more, without a gateway."""
        if self._kind in ("inline", "search"):
            scores = [hit.score for hit in answer.hits]
            known = {str(place) for place in range(self._count)} if self._kind == "inline" else None
            ids = [hit.id for hit in answer.hits]
            return len(set(ids)) == len(ids) > 0 and _descending(scores) and (known is None or known >= set(ids))
        if worker is None:
            return True
        return _close(self._numbers(answer), self._numbers(await self._again(number, worker)))

    async def _again(self, number: int, worker: grpc.aio.Channel) -> Any:
        """A worker's answer to the same request, as soon as it has loaded."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _AGAIN_S
        while True:
            try:
                return await self._method(worker)(self.request(number), timeout=_AGAIN_S, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or loop.time() > end:
                    raise
            await asyncio.sleep(_PAUSE_S)

    def _method(self, channel: grpc.aio.Channel) -> Callable[..., Awaitable[Any]]:
        if self._kind == "embed":
            return embed_pb2_grpc.EmbedServiceStub(channel).Embed
        if self._kind == "rerank":
            return rerank_pb2_grpc.RerankServiceStub(channel).Rerank
        return retrieval_pb2_grpc.RetrievalServiceStub(channel).Search

    def _numbers(self, answer: Any) -> list[Sequence[float]]:
        if self._kind == "embed":
            return [np.frombuffer(result.embedding.data, "<f4") for result in answer.results]  # type: ignore[misc]
        return [[result.logit for result in sorted(answer.results, key=lambda result: result.index)]]


def _descending(scores: Sequence[float]) -> bool:
    return all(first >= second for first, second in pairwise(scores))


def _close(one: list[Sequence[float]], other: list[Sequence[float]]) -> bool:
    return len(one) == len(other) and all(
        len(first) == len(second) and np.allclose(first, second, rtol=0, atol=_TOLERANCE)
        for first, second in zip(one, other, strict=True)
    )
