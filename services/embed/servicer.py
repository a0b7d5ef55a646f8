"""EmbedService: wire → engine → wire."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import trace

from services.embed.options import least_dimensions, options_of
from services.embed.results import Embedded, embed
from services.embed.settings import EmbedSettings
from services.embed.stream import Chunk, responses
from services.runtime import deadline
from services.runtime.lifecycle import Lifecycle
from services.runtime.telemetry import names
from services.runtime.validate import Check
from services.worker import wire
from services.worker.signals import Signals
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

if TYPE_CHECKING:  # it imports torch, which takes seconds; the port is bound before
    from services.engine.engine import EmbedEngine

    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"].full_name

_WINDOWS_IN_QUEUE = 4
_DETAILED_CHUNKS = 16  # of a stream; a trace with a million spans helps nobody


class EmbedServicer(embed_pb2_grpc.EmbedServiceServicer):
    """Serves one engine. `engine` is asked for it on every call: none is let in before it is loaded."""

    def __init__(
        self, engine: Callable[[], EmbedEngine], settings: EmbedSettings, signals: Signals, lifecycle: Lifecycle
    ) -> None:
        self._engine, self._settings, self._signals, self._lifecycle = engine, settings, signals, lifecycle
        self._limits = settings.limits()

    async def Embed(self, request: embed_pb2.EmbedRequest, context: Context) -> embed_pb2.EmbedResponse:  # noqa: N802
        """One result for each text, in their order."""
        started = time.perf_counter()
        engine = self._engine()
        check = Check()
        check.count("texts", request.texts, 1, self._limits.max_items)
        options = options_of(request, engine.info, self._limits.max_text_bytes, check)
        self._describe(engine, options.dimensions, len(request.texts))
        embedded = await embed(
            engine,
            self._signals,
            list(request.texts),  # once: each look at a repeated field decodes it anew
            options,
            field=lambda index: f"texts[{index}]",
            max_text_bytes=self._limits.max_text_bytes,
            deadline=deadline.absolute(context),
        )
        trace.get_current_span().set_attribute(names.INPUT_TOKENS, embedded.tokens)
        return embed_pb2.EmbedResponse(
            results=embedded.results,
            model=wire.identity(engine.info),
            usage=common_pb2.Usage(input_tokens=embedded.tokens, cache_misses=embedded.computed),
            timings=wire.timings(time.perf_counter() - started, embedded.timings),
        )

    async def EmbedStream(  # noqa: N802
        self, request_iterator: AsyncIterator[embed_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        """Results in completion order."""
        engine = self._engine()
        limit = deadline.absolute(context)
        chunks = itertools.count()

        async def compute(chunk: Chunk) -> Embedded:
            return await embed(
                engine,
                self._signals,
                [item.text for item in chunk.items],
                chunk.options,
                field=chunk.text_field,
                max_text_bytes=self._limits.max_text_bytes,
                deadline=limit,
                detailed=next(chunks) < _DETAILED_CHUNKS,
            )

        window = self._settings.stream_window_tokens or engine.stats().queue_limit_tokens // _WINDOWS_IN_QUEUE
        items = tokens = 0
        async with aclosing(
            responses(
                request_iterator,
                compute,
                info=engine.info,
                limits=self._limits,
                window=window,
                stopping=self._lifecycle.stopping,
            )
        ) as answers:
            async for response in answers:
                items += len(response.results)
                tokens += sum(
                    answer.result.tokens for answer in response.results if answer.result.HasField("embedding")
                )
                yield response
        self._describe(engine, engine.info.dimensions, items)
        trace.get_current_span().set_attribute(names.INPUT_TOKENS, tokens)

    async def GetModel(self, request: embed_pb2.GetModelRequest, context: Context) -> embed_pb2.GetModelResponse:  # noqa: N802
        """The model and its limits."""
        info = self._engine().info
        return embed_pb2.GetModelResponse(
            model=wire.identity(info),
            dimensions=info.dimensions,
            min_dimensions=least_dimensions(info),
            max_tokens=info.max_tokens,
            dtype=info.dtype,
            default_instruction=info.default_instruction,
            limits=self._limits,
        )

    def _describe(self, engine: EmbedEngine, dimensions: int, items: int) -> None:
        trace.get_current_span().set_attributes(
            {
                names.OPERATION: names.EMBEDDINGS,
                names.PROVIDER: names.PROVIDER_WINNOW,
                names.RESPONSE_MODEL: engine.info.name,
                names.FINGERPRINT: engine.info.fingerprint,
                names.DIMENSIONS: dimensions,
                names.ITEMS: items,
            }
        )
