"""RerankService: wire → engine → wire."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import trace

from services.engine.types import Failure, ModelInfo, RerankItem, Timings
from services.rerank.settings import RerankSettings
from services.runtime import deadline
from services.runtime.errors import Problem, to_status
from services.runtime.telemetry import names
from services.runtime.validate import Check, oversized
from services.worker import wire
from services.worker.problems import engine_problems, item_problem
from services.worker.signals import Signals
from winnow.common.v1 import common_pb2
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc

if TYPE_CHECKING:  # it imports torch, which takes seconds; the port is bound before
    from services.engine.engine import RerankEngine

    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"].full_name
MIN_MAX_TOKENS = 128


class RerankServicer(rerank_pb2_grpc.RerankServiceServicer):
    """Serves one engine. `engine` is asked for it on every call: none is let in before it is loaded."""

    def __init__(
        self,
        engine: Callable[[], RerankEngine],
        settings: RerankSettings,
        signals: Signals,
        recommended_retrieval_weight: float | None,
    ) -> None:
        self._engine, self._signals, self._weight = engine, signals, recommended_retrieval_weight
        self._limits = settings.limits()

    async def Rerank(self, request: rerank_pb2.RerankRequest, context: Context) -> rerank_pb2.RerankResponse:  # noqa: N802
        """Scores and sorts."""
        started = time.perf_counter()
        engine = self._engine()
        self._check(request, engine.info)
        self._describe(request, engine.info)
        problems: dict[int, Problem] = {}
        documents = list(request.documents)  # once: each look at a repeated field decodes it anew
        for index, document in enumerate(documents):
            if problem := oversized(f"documents[{index}]", document, self._limits.max_text_bytes):
                problems[index] = problem
        sound = [index for index in range(len(documents)) if index not in problems]
        scores, spent = await self._scored(engine, request, documents, sound, problems, deadline.absolute(context))
        tokens = sum(item.tokens for item in scores.values())
        trace.get_current_span().set_attribute(names.INPUT_TOKENS, tokens)
        return rerank_pb2.RerankResponse(
            results=_ranking(request, documents, scores),
            errors=[
                rerank_pb2.RerankError(index=index, error=to_status(problems[index])) for index in sorted(problems)
            ],
            model=wire.identity(engine.info),
            usage=common_pb2.Usage(input_tokens=tokens, cache_misses=len(scores)),
            timings=wire.timings(time.perf_counter() - started, spent),
        )

    async def GetModel(self, request: rerank_pb2.GetModelRequest, context: Context) -> rerank_pb2.GetModelResponse:  # noqa: N802
        """The model and its limits."""
        info = self._engine().info
        return rerank_pb2.GetModelResponse(
            model=wire.identity(info),
            max_tokens=info.max_tokens,
            dtype=info.dtype,
            default_instruction=info.default_instruction,
            limits=self._limits,
            recommended_retrieval_weight=self._weight,
        )

    async def _scored(
        self,
        engine: RerankEngine,
        request: rerank_pb2.RerankRequest,
        documents: list[str],
        sound: list[int],
        problems: dict[int, Problem],
        limit: float | None,
    ) -> tuple[dict[int, RerankItem], Timings]:
        """Scores of the sound documents by index; those that fail are added to `problems`."""
        if not sound:
            return {}, Timings()
        served = self._signals.request()
        with engine_problems():
            result = await engine.rerank(
                request.query,
                [documents[index] for index in sound],
                instruction=request.instruction if request.HasField("instruction") else None,
                truncation=wire.TRUNCATION[request.truncation],
                max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
                lane=wire.lane(request.priority),
                deadline=limit,
                context=served,
            )
        scores: dict[int, RerankItem] = {}
        for index, item in zip(sound, result.items, strict=True):
            if isinstance(item, Failure):
                problems[index] = item_problem(item.error, f"documents[{index}]")
            else:
                scores[index] = item
        self._signals.served(served, result.timings, sum(item.tokens for item in scores.values()))
        return scores, result.timings

    def _check(self, request: rerank_pb2.RerankRequest, info: ModelInfo) -> None:
        check = Check()
        check.filled("query", request.query)
        check.size("query", request.query, self._limits.max_text_bytes)
        check.count("documents", request.documents, 1, self._limits.max_items)
        check.enum("truncation", request.truncation, common_pb2.Truncation)
        check.enum("priority", request.priority, common_pb2.Priority)
        if request.HasField("instruction"):
            check.filled("instruction", request.instruction)
            check.size("instruction", request.instruction, self._limits.max_text_bytes)
        if request.HasField("top_n") and request.top_n < 1:
            check.wrong("top_n", "is 0; leave it out for all documents, or ask for at least 1")
        if request.HasField("min_score"):
            check.within("min_score", request.min_score, 0, 1)
        if request.HasField("max_tokens"):
            check.within("max_tokens", request.max_tokens, min(MIN_MAX_TOKENS, info.max_tokens), info.max_tokens)
        check.done()

    def _describe(self, request: rerank_pb2.RerankRequest, info: ModelInfo) -> None:
        trace.get_current_span().set_attributes(
            {
                names.OPERATION: names.RERANK,
                names.PROVIDER: names.PROVIDER_WINNOW,
                names.RESPONSE_MODEL: info.name,
                names.FINGERPRINT: info.fingerprint,
                names.RERANK_TOP_N: request.top_n or len(request.documents),
                names.ITEMS: len(request.documents),
            }
        )


def _ranking(
    request: rerank_pb2.RerankRequest, documents: list[str], scores: dict[int, RerankItem]
) -> list[rerank_pb2.RerankResult]:
    """Best first by logit, equal logits by index; cut by min_score, then by top_n."""
    least = request.min_score if request.HasField("min_score") else 0.0
    ranked = sorted(scores, key=lambda index: (-scores[index].logit, index))
    kept = [index for index in ranked if scores[index].probability >= least]
    return [
        rerank_pb2.RerankResult(
            index=index,
            score=scores[index].probability,
            logit=scores[index].logit,
            tokens=scores[index].tokens,
            truncated=scores[index].truncated,
            document=documents[index] if request.return_documents else None,
        )
        for index in (kept[: request.top_n] if request.HasField("top_n") else kept)
    ]
