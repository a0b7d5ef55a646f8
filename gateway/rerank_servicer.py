"""RerankService: wire → reranker → wire."""

import time
from dataclasses import replace
from typing import Any

import grpc
from google.rpc import status_pb2
from opentelemetry import trace

from gateway.checks import rerank_job
from gateway.cost import Cost
from gateway.problems import placed
from gateway.reranker import Reranked, Reranker
from services.runtime import deadline
from services.runtime.errors import to_status
from services.runtime.telemetry import names
from services.runtime.validate import oversized
from winnow.common.v1 import common_pb2
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"].full_name


class RerankServicer(rerank_pb2_grpc.RerankServiceServicer):
    """Serves the reranker."""

    def __init__(self, reranker: Reranker, limits: common_pb2.Limits) -> None:
        self._reranker, self._limits = reranker, limits

    async def Rerank(self, request: rerank_pb2.RerankRequest, context: Context) -> rerank_pb2.RerankResponse:  # noqa: N802
        """Scores and sorts."""
        began = time.perf_counter()
        until = deadline.absolute(context)
        model = await self._reranker.model(until)
        job = rerank_job(request, model, self._limits)
        problems: dict[int, status_pb2.Status] = {}
        for index, document in enumerate(request.documents):
            if problem := oversized(f"documents[{index}]", document, self._limits.max_text_bytes):
                problems[index] = to_status(problem)
        sound = [index for index in range(len(request.documents)) if index not in problems]
        if problems:
            job = replace(job, documents=[request.documents[index] for index in sound])
        reranked = await self._reranker.rerank(job, until) if sound else None
        results: list[rerank_pb2.RerankResult] = []
        for index, answer in zip(sound, reranked.answers if reranked else (), strict=True):
            entry = answer.entry
            if entry is None:
                problems[index] = placed(answer.error or status_pb2.Status(), f"documents[{index}]")
                continue
            results.append(
                rerank_pb2.RerankResult(
                    index=index,
                    score=entry.score,
                    logit=entry.logit,
                    tokens=entry.tokens,
                    truncated=entry.truncated,
                    cache_hit=answer.hit,
                    document=request.documents[index] if request.return_documents else None,
                )
            )
        cost = reranked.cost if reranked else Cost()
        usage = reranked.usage if reranked else common_pb2.Usage()
        self._describe(request, reranked, usage)
        return rerank_pb2.RerankResponse(
            results=_ranked(request, results),
            errors=[rerank_pb2.RerankError(index=index, error=problems[index]) for index in sorted(problems)],
            model=(reranked.model if reranked else model).model,
            usage=usage,
            timings=common_pb2.Timings(
                total_ms=(time.perf_counter() - began) * 1e3,
                cache_ms=cost.cache_ms,
                tokenize_ms=cost.tokenize_ms,
                queue_ms=cost.queue_ms,
                forward_ms=cost.forward_ms,
            ),
        )

    async def GetModel(self, request: rerank_pb2.GetModelRequest, context: Context) -> rerank_pb2.GetModelResponse:  # noqa: N802
        """The workers' model, and the gateway's limits."""
        answer = rerank_pb2.GetModelResponse()
        answer.CopyFrom(await self._reranker.model(deadline.absolute(context)))
        answer.limits.CopyFrom(self._limits)
        return answer

    def _describe(self, request: rerank_pb2.RerankRequest, reranked: Reranked | None, usage: common_pb2.Usage) -> None:
        span = trace.get_current_span()
        span.set_attributes(
            {
                names.OPERATION: names.RERANK,
                names.PROVIDER: names.PROVIDER_WINNOW,
                names.RERANK_TOP_N: request.top_n or len(request.documents),
                names.ITEMS: len(request.documents),
                names.INPUT_TOKENS: usage.input_tokens,
            }
        )
        if reranked is not None:
            span.set_attribute(names.RESPONSE_MODEL, reranked.model.model.name)
            span.set_attribute(names.FINGERPRINT, reranked.model.model.fingerprint)


def _ranked(request: rerank_pb2.RerankRequest, results: list[rerank_pb2.RerankResult]) -> list[rerank_pb2.RerankResult]:
    """Best first by logit, equal logits by index; cut by min_score, then by top_n."""
    least = request.min_score if request.HasField("min_score") else 0.0
    kept = [result for result in results if result.score >= least]
    kept.sort(key=lambda result: (-result.logit, result.index))
    return kept[: request.top_n] if request.HasField("top_n") else kept
