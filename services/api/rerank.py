"""RerankService over a RerankBackend."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import trace

from services.api.backend import RerankBackend, ScoredDocument, rerank_usage
from services.api.models import scores_are_logits
from services.api.options import rerank_options
from services.runtime import deadline
from services.runtime.errors import to_status, with_field
from services.runtime.telemetry import names
from services.runtime.validation import oversized
from winnow.common.v1 import common_pb2
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"].full_name


class RerankService(rerank_pb2_grpc.RerankServiceServicer):
    """Serves a backend."""

    def __init__(self, backend: RerankBackend, limits: common_pb2.Limits) -> None:
        self._backend, self._limits = backend, limits

    async def Rerank(self, request: rerank_pb2.RerankRequest, context: Context) -> rerank_pb2.RerankResponse:  # noqa: N802
        """The scored documents, best first, and an error for each that failed."""
        began = time.perf_counter()
        end = deadline.absolute(context)
        model = await self._backend.model(end)
        options = rerank_options(request, model, self._limits)
        documents = list(request.documents)  # once: each access to a repeated field decodes it again
        errors = {
            index: to_status(problem)
            for index, document in enumerate(documents)
            if (problem := oversized(f"documents[{index}]", document, self._limits.max_text_bytes))
        }
        sent = [index for index in range(len(documents)) if index not in errors]
        scored: dict[int, ScoredDocument] = {}
        usage, timings = common_pb2.Usage(), common_pb2.Timings()
        if sent:
            reranked = await self._backend.rerank([documents[index] for index in sent], options, end)
            model, usage = reranked.model, rerank_usage(reranked.items)
            timings.CopyFrom(reranked.timings)
            for index, item in zip(sent, reranked.items, strict=True):
                if isinstance(item, ScoredDocument):
                    scored[index] = item
                else:
                    errors[index] = with_field(item.error, f"documents[{index}]")
        _describe(request, model.model, usage)
        timings.total_ms = (time.perf_counter() - began) * 1e3
        return rerank_pb2.RerankResponse(
            results=_ranked(request, documents, scored, logits=scores_are_logits(model)),
            errors=[rerank_pb2.RerankError(index=index, error=errors[index]) for index in sorted(errors)],
            model=model.model,
            usage=usage,
            timings=timings,
        )

    async def GetModel(self, request: rerank_pb2.GetModelRequest, context: Context) -> rerank_pb2.GetModelResponse:  # noqa: N802
        """The model that is served, and the limits of this server."""
        answer = rerank_pb2.GetModelResponse()
        answer.CopyFrom(await self._backend.model(deadline.absolute(context)))
        answer.limits.CopyFrom(self._limits)
        return answer


def _ranked(
    request: rerank_pb2.RerankRequest, documents: Sequence[str], scored: dict[int, ScoredDocument], *, logits: bool
) -> list[rerank_pb2.RerankResult]:
    """Best first by logit, equal logits by index; cut by min_score, then by top_n. `logits`: they are the scores."""
    least = request.min_score if request.HasField("min_score") else -math.inf
    scores = {index: document.logit if logits else document.probability for index, document in scored.items()}
    order = sorted(scored, key=lambda index: (-scored[index].logit, index))
    kept = [index for index in order if scores[index] >= least]
    return [
        rerank_pb2.RerankResult(
            index=index,
            score=scores[index],
            logit=scored[index].logit,
            tokens=scored[index].tokens,
            truncated=scored[index].truncated,
            cache_hit=scored[index].cache_hit,
            document=documents[index] if request.return_documents else None,
        )
        for index in (kept[: request.top_n] if request.HasField("top_n") else kept)
    ]


def _describe(request: rerank_pb2.RerankRequest, model: common_pb2.ModelIdentity, usage: common_pb2.Usage) -> None:
    trace.get_current_span().set_attributes(
        {
            names.OPERATION: names.RERANK,
            names.PROVIDER: names.PROVIDER_WINNOW,
            names.RESPONSE_MODEL: model.name,
            names.FINGERPRINT: model.fingerprint,
            names.RERANK_TOP_N: request.top_n or len(request.documents),
            names.ITEMS: len(request.documents),
            names.INPUT_TOKENS: usage.input_tokens,
        }
    )
