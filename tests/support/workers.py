"""Stand-ins for workers that can be told to misbehave: be full, slow, or gone over to another model."""
# ruff: noqa: N802 - methods are named by the contract

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import numpy as np

from services.api.vectors import encode, narrow
from services.runtime import callers
from services.runtime.errors import InvalidField, Problem, to_status
from services.runtime.lifecycle import Lifecycle
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

LIMITS = common_pb2.Limits(max_items=2048, max_text_bytes=4 << 20, max_message_bytes=64 << 20)
DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


class _Worker:
    """Not a model: what it says depends on its inputs alone. One token a character."""

    interceptors = ()

    def __init__(self, fingerprint: str, max_tokens: int) -> None:
        self.fingerprint = fingerprint
        self.max_tokens = max_tokens
        self.instructions = True
        """Whether the model accepts them."""
        self.requests: list[Any] = []
        self.callers: list[str] = []
        """Whom each of the requests is for."""
        self.problem: Exception | None = None
        """Raised for every call but GetModel, where set."""
        self.gate: asyncio.Event | None = None
        """Calls wait for it, where set."""
        self.waiting = asyncio.Event()
        """Set when a call has arrived."""
        self.cancelled = 0

    def without_instructions(self) -> Self:
        """The same, of a model that accepts none."""
        self.instructions = False
        return self

    @property
    def default_instruction(self) -> str:
        return DEFAULT_INSTRUCTION if self.instructions else ""

    async def _enter(self, request: Any) -> None:
        self.requests.append(request)
        self.callers.append(callers.current().name)
        self.waiting.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.problem is not None:
            raise self.problem
        if request.HasField("instruction") and not self.instructions:
            raise InvalidField("instruction", "is not accepted")

    def _identity(self) -> common_pb2.ModelIdentity:
        return common_pb2.ModelIdentity(name="stand-in", revision="1", fingerprint=self.fingerprint)

    def _cut(self, text: str, max_tokens: int, truncation: int) -> tuple[str, bool]:
        if len(text) <= max_tokens:
            return text, False
        if truncation == common_pb2.TRUNCATION_START:
            return text[-max_tokens:], True
        return text[:max_tokens], True

    async def start(self) -> None:
        pass

    async def drain(self) -> None:
        pass

    async def close(self) -> None:
        pass


class EmbedWorker(_Worker, embed_pb2_grpc.EmbedServiceServicer):
    """Texts that share words have similar vectors."""

    services = (embed_pb2.DESCRIPTOR.services_by_name["EmbedService"].full_name,)

    def __init__(self, fingerprint: str = "embed-1", dimensions: int = 96, max_tokens: int = 512) -> None:
        super().__init__(fingerprint, max_tokens)
        self.dimensions = dimensions
        self.min_dimensions = min(32, dimensions)
        self.input_types = [embed_pb2.INPUT_TYPE_DOCUMENT, embed_pb2.INPUT_TYPE_QUERY, embed_pb2.INPUT_TYPE_SYMMETRIC]

    def register(self, server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        embed_pb2_grpc.add_EmbedServiceServicer_to_server(self, server)

    @property
    def texts(self) -> list[str]:
        """Every text that was computed."""
        return [text for request in self.requests for text in request.texts]

    def vector(self, text: str, head: str) -> np.ndarray:
        def direction(word: str) -> np.ndarray:
            seed = int.from_bytes(hashlib.sha256(f"{self.fingerprint}|{word}".encode()).digest()[:8], "little")
            return np.random.default_rng(seed).standard_normal(self.dimensions)

        return (sum(map(direction, text.split()), direction("")) + 0.2 * direction("head " + head)).astype(np.float32)

    async def Embed(self, request: embed_pb2.EmbedRequest, context: Context) -> embed_pb2.EmbedResponse:
        return await self.answer(request)

    async def answer(self, request: embed_pb2.EmbedRequest) -> embed_pb2.EmbedResponse:
        await self._enter(request)
        results = []
        for index, text in enumerate(request.texts):
            if request.truncation == common_pb2.TRUNCATION_ERROR and len(text) > request.max_tokens:
                wrong = InvalidField(f"texts[{index}]", "is too long")
                results.append(embed_pb2.EmbedResult(error=to_status(wrong), tokens=len(text)))
                continue
            kept, truncated = self._cut(text, request.max_tokens or self.max_tokens, request.truncation)
            row = narrow(self.vector(kept, f"{request.input_type} {request.instruction}")[None], self.dimensions)
            if "NAN" in text:
                row[:] = np.nan
            [embedding] = encode(row, request.encoding)
            results.append(embed_pb2.EmbedResult(embedding=embedding, tokens=len(kept), truncated=truncated))
        return embed_pb2.EmbedResponse(
            results=results, model=self._identity(), timings=common_pb2.Timings(forward_ms=1.5)
        )

    def EmbedStream(
        self, request_iterator: AsyncIterator[embed_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        raise NotImplementedError("the gateway sends no streams to workers")

    async def GetModel(self, request: embed_pb2.GetModelRequest, context: Context) -> embed_pb2.GetModelResponse:
        return embed_pb2.GetModelResponse(
            model=self._identity(), dimensions=self.dimensions, min_dimensions=self.min_dimensions,
            max_tokens=self.max_tokens, dtype="float32", limits=LIMITS, input_types=self.input_types,
            accepts_instructions=self.instructions, default_instruction=self.default_instruction,
        )  # fmt: skip


class RerankWorker(_Worker, rerank_pb2_grpc.RerankServiceServicer):
    """Scores by the share of the query's words that are in the document; of equal shares the shorter document wins."""

    services = (rerank_pb2.DESCRIPTOR.services_by_name["RerankService"].full_name,)

    def __init__(self, fingerprint: str = "rerank-1", max_tokens: int = 512, weight: float | None = None) -> None:
        super().__init__(fingerprint, max_tokens)
        self.weight = weight
        self.score_type = rerank_pb2.SCORE_TYPE_PROBABILITY

    def register(self, server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        rerank_pb2_grpc.add_RerankServiceServicer_to_server(self, server)

    @property
    def documents(self) -> list[str]:
        """Every document that was scored."""
        return [document for request in self.requests for document in request.documents]

    async def Rerank(self, request: rerank_pb2.RerankRequest, context: Context) -> rerank_pb2.RerankResponse:
        await self._enter(request)
        results, errors = [], []
        for index, document in enumerate(request.documents):
            if "NAN" in document:
                errors.append(rerank_pb2.RerankError(index=index, error=to_status(Problem("no finite score"))))
                continue
            kept, truncated = self._cut(document, request.max_tokens, request.truncation)
            words = set(request.query.lower().split())
            share = len(words & set(kept.lower().split())) / len(words)
            logit = 6 * share - 3 - len(kept) / 1000
            results.append(
                rerank_pb2.RerankResult(
                    index=index, logit=logit, score=1 / (1 + math.exp(-logit)), tokens=len(kept), truncated=truncated
                )
            )
        results.sort(key=lambda result: -result.logit)
        return rerank_pb2.RerankResponse(results=results, errors=errors, model=self._identity())

    async def GetModel(self, request: rerank_pb2.GetModelRequest, context: Context) -> rerank_pb2.GetModelResponse:
        return rerank_pb2.GetModelResponse(
            model=self._identity(), max_tokens=self.max_tokens, dtype="float32", limits=LIMITS,
            recommended_retrieval_weight=self.weight, score_type=self.score_type,
            accepts_instructions=self.instructions, default_instruction=self.default_instruction,
        )  # fmt: skip
