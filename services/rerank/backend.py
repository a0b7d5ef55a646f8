"""The rerank worker's engine as a backend of RerankService."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from services.api.backend import FailedItem, Reranked, ScoredDocument
from services.api.options import RerankOptions
from services.engine.types import Failure, Score
from services.runtime import callers
from services.runtime.errors import to_status
from services.worker import convert
from services.worker.errors import engine_problems, problem_of
from services.worker.telemetry import WorkerMetrics
from winnow.rerank.v1 import rerank_pb2

if TYPE_CHECKING:  # it imports torch, which takes seconds; the port is bound before
    from services.engine.engine import RerankEngine


_SCORE_TYPE = {
    Score.PROBABILITY: rerank_pb2.SCORE_TYPE_PROBABILITY,
    Score.LOGIT: rerank_pb2.SCORE_TYPE_LOGIT,
}


class EngineBackend:
    """`engine` returns the engine; it is called on every request, since none is accepted before it is loaded."""

    def __init__(
        self, engine: Callable[[], RerankEngine], metrics: WorkerMetrics, recommended_retrieval_weight: float | None
    ) -> None:
        self._engine, self._metrics, self._weight = engine, metrics, recommended_retrieval_weight

    async def model(self, deadline: float | None = None) -> rerank_pb2.GetModelResponse:
        """The engine's model."""
        info = self._engine().info
        return rerank_pb2.GetModelResponse(
            model=convert.identity(info),
            max_tokens=info.max_tokens,
            dtype=info.dtype,
            default_instruction=info.default_instruction,
            recommended_retrieval_weight=self._weight,
            accepts_instructions=info.capabilities.instructions,
            score_type=_SCORE_TYPE[info.capabilities.score],
        )

    async def rerank(self, documents: Sequence[str], options: RerankOptions, deadline: float | None) -> Reranked:
        """See RerankBackend."""
        request = self._metrics.request()
        with engine_problems():
            result = await self._engine().rerank(
                options.query,
                documents,
                instruction=options.instruction,
                truncation=convert.TRUNCATION[options.truncation],
                max_tokens=options.max_tokens,
                priority=convert.PRIORITY[options.priority],
                deadline=deadline,
                caller=callers.current().name,
                context=request,
            )
        items: list[ScoredDocument | FailedItem] = [
            FailedItem(to_status(problem_of(item.error)), item.tokens)
            if isinstance(item, Failure)
            else ScoredDocument(item.logit, item.probability, item.tokens, item.truncated)
            for item in result.items
        ]
        self._metrics.served(
            request, result.timings, sum(item.tokens for item in items if isinstance(item, ScoredDocument))
        )
        return Reranked(await self.model(), items, convert.timings(result.timings))
