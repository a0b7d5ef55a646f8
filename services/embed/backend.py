"""The embed worker's engine as a backend of EmbedService."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from services.api.backend import Embedded, EmbeddedText, FailedItem
from services.api.options import EmbedOptions
from services.api.vectors import F32, MIN_DIMENSIONS, narrow
from services.engine.types import Failure, InputType
from services.runtime import callers
from services.runtime.errors import to_status
from services.worker import convert
from services.worker.errors import engine_problems, problem_of
from services.worker.telemetry import WorkerMetrics
from winnow.embed.v1 import embed_pb2

if TYPE_CHECKING:  # it imports torch, which takes seconds; the port is bound before
    from services.engine.engine import EmbedEngine

_INPUT_TYPE = {
    embed_pb2.INPUT_TYPE_DOCUMENT: InputType.DOCUMENT,
    embed_pb2.INPUT_TYPE_QUERY: InputType.QUERY,
    embed_pb2.INPUT_TYPE_SYMMETRIC: InputType.SYMMETRIC,
}
_DETAILED_CHUNKS = 16  # of a stream; more spans would only make its trace unreadable


class EngineBackend:
    """`engine` returns the engine; it is called on every request, since none is accepted before it is loaded."""

    def __init__(self, engine: Callable[[], EmbedEngine], metrics: WorkerMetrics) -> None:
        self._engine, self._metrics = engine, metrics

    async def model(self, deadline: float | None = None) -> embed_pb2.GetModelResponse:
        """The engine's model."""
        info = self._engine().info
        able = info.capabilities
        return embed_pb2.GetModelResponse(
            model=convert.identity(info),
            dimensions=info.dimensions,
            min_dimensions=min(MIN_DIMENSIONS, info.dimensions) if able.sliced else info.dimensions,
            max_tokens=info.max_tokens,
            dtype=info.dtype,
            default_instruction=info.default_instruction,
            input_types=[kind for kind, its in _INPUT_TYPE.items() if its in able.input_types],
            accepts_instructions=able.instructions,
        )

    async def embed(
        self, texts: Sequence[str], options: EmbedOptions, deadline: float | None, *, part: int = 0
    ) -> Embedded:
        """See EmbedBackend."""
        request = self._metrics.request(part < _DETAILED_CHUNKS)
        with engine_problems():
            result = await self._engine().embed(
                texts,
                input_type=_INPUT_TYPE[options.input_type],
                instruction=options.instruction,
                truncation=convert.TRUNCATION[options.truncation],
                max_tokens=options.max_tokens,
                priority=convert.PRIORITY[options.priority],
                deadline=deadline,
                caller=callers.current().name,
                context=request,
            )
        items: list[EmbeddedText | FailedItem] = []
        vectors: list[F32] = []
        for item in result.items:
            if isinstance(item, Failure):
                items.append(FailedItem(to_status(problem_of(item.error)), item.tokens))
            else:
                items.append(EmbeddedText(item.tokens, item.truncated))
                vectors.append(item.vector)
        self._metrics.served(
            request, result.timings, sum(item.tokens for item in items if isinstance(item, EmbeddedText))
        )

        def rows(dimensions: int) -> F32:
            whole: F32 = np.stack(vectors)
            return whole if dimensions == whole.shape[1] else narrow(whole, dimensions)

        return Embedded(await self.model(), items, rows, convert.timings(result.timings))
