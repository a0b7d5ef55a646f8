"""EmbedService over an EmbedBackend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import trace

from services.api.backend import EmbedBackend, Embedded, EmbeddedText, FailedItem, embed_usage
from services.api.chunks import chunks, estimated_tokens
from services.api.options import EmbedOptions, VectorFormat, embed_options
from services.api.retry import Outage, is_for_item, retry_while_unavailable
from services.api.vectors import encode
from services.runtime import deadline
from services.runtime.errors import InvalidField, NonFiniteResult, NotReady, Problem, to_status, with_field
from services.runtime.streams import fitting, in_completion_order, unless, until
from services.runtime.telemetry import names
from services.runtime.validation import Check, oversized
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"].full_name

MAX_ID_BYTES = 512
# Most values that are encoded on the event loop; more would block it for milliseconds, and go to a thread.
_INLINE_VALUES = 1 << 18


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Limits of a stream."""

    window: Callable[[], int]
    """Maximum estimated tokens in flight, read when a stream begins."""
    retry_for_s: float
    """How long a stream retries while the workers are unreachable."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Items of one message from position `first` on; `number` counts the chunks of the stream."""

    items: Sequence[embed_pb2.EmbedStreamItem]
    first: int
    number: int
    options: EmbedOptions
    form: VectorFormat


@dataclass(frozen=True, slots=True)
class Results:
    """A result for each text. `embedded` is None if every text was refused before the backend was asked."""

    results: Sequence[embed_pb2.EmbedResult]
    embedded: Embedded | None


@dataclass(frozen=True, slots=True)
class _Answers:
    """The results of a chunk, and the model that made them; None if nothing was computed."""

    results: list[embed_pb2.EmbedStreamResult]
    model: common_pb2.ModelIdentity | None


class EmbedService(embed_pb2_grpc.EmbedServiceServicer):
    """Serves a backend. `stopping`: when set, streams end after what they have accepted, with NotReady."""

    def __init__(
        self, backend: EmbedBackend, limits: common_pb2.Limits, stream: StreamSettings, stopping: asyncio.Event
    ) -> None:
        self._backend, self._limits, self._stream, self._stopping = backend, limits, stream, stopping

    async def Embed(  # type: ignore[override]  # noqa: N802
        self, request: embed_pb2.EmbedRequest, context: Context
    ) -> embed_pb2.EmbedResponse | bytes:
        """One result for each text, in their order. Bytes are a serialised EmbedResponse."""
        began = time.perf_counter()
        end = deadline.absolute(context)
        check = Check()
        check.count("texts", request.texts, 1, self._limits.max_items)
        model = await self._backend.model(end)
        options, form = embed_options(request, model, self._limits, check)
        return await self.respond(request, model, options, form, end, began)

    async def respond(
        self,
        request: embed_pb2.EmbedRequest,
        model: embed_pb2.GetModelResponse,
        options: EmbedOptions,
        form: VectorFormat,
        end: float | None,
        began: float,
    ) -> embed_pb2.EmbedResponse | bytes:
        """The answer to a request whose options are valid. A subclass may know it already."""
        texts = list(request.texts)  # once: each access to a repeated field decodes it again
        paths = [f"texts[{position}]" for position in range(len(texts))]
        outcome = await self.results(texts, paths, options, form, end)
        embedded = outcome.embedded
        usage = embed_usage(embedded.items) if embedded else common_pb2.Usage()
        timings = common_pb2.Timings()
        if embedded:
            timings.CopyFrom(embedded.timings)
            model = embedded.model
        describe(model.model, form.dimensions, len(texts), usage.input_tokens)
        timings.total_ms = (time.perf_counter() - began) * 1e3
        return embed_pb2.EmbedResponse(results=outcome.results, model=model.model, usage=usage, timings=timings)

    async def EmbedStream(  # noqa: N802
        self, request_iterator: AsyncIterator[embed_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        """Results in completion order."""
        end = deadline.absolute(context)
        window = self._stream.window()
        items = tokens = dimensions = 0
        model = common_pb2.ModelIdentity()

        outage = Outage(self._stream.retry_for_s)

        async def work(chunk: _Chunk) -> _Answers:
            return await self._chunk(chunk, end, outage)

        chunks = self._chunks(until(self._stopping, request_iterator), window, end, outage)
        async with aclosing(in_completion_order(chunks, work, window)) as answered:
            async for answers in answered:
                items += len(answers.results)
                for result in (answer.result for answer in answers.results if answer.result.HasField("embedding")):
                    tokens += result.tokens
                    dimensions = result.embedding.dimensions
                model = answers.model or model
                for part in fitting(answers.results, self._limits.max_message_bytes):
                    yield embed_pb2.EmbedStreamResponse(results=part, model=answers.model)
        describe(model, dimensions, items, tokens)

    async def GetModel(self, request: embed_pb2.GetModelRequest, context: Context) -> embed_pb2.GetModelResponse:  # noqa: N802
        """The model that is served, and the limits of this server."""
        answer = embed_pb2.GetModelResponse()
        answer.CopyFrom(await self._backend.model(deadline.absolute(context)))
        answer.limits.CopyFrom(self._limits)
        return answer

    async def results(
        self,
        texts: Sequence[str],
        paths: Sequence[str],
        options: EmbedOptions,
        form: VectorFormat,
        end: float | None,
        part: int = 0,
    ) -> Results:
        """A result for each text; `paths` are their field paths. A text that is too large fails alone."""
        errors = {
            position: to_status(problem)
            for position, (path, text) in enumerate(zip(paths, texts, strict=True))
            if (problem := oversized(path, text, self._limits.max_text_bytes))
        }
        sent = texts if not errors else [text for position, text in enumerate(texts) if position not in errors]
        if not sent:
            return Results([embed_pb2.EmbedResult(error=errors[position]) for position in range(len(texts))], None)
        embedded = await self._backend.embed(sent, options, end, part=part)
        vectors = iter(await _encoded(embedded, form))
        items = iter(embedded.items)
        results = []
        for position, path in enumerate(paths):
            item = FailedItem(errors[position]) if position in errors else next(items)
            if isinstance(item, FailedItem):
                result = embed_pb2.EmbedResult(error=with_field(item.error, path), tokens=item.tokens)
            elif (embedding := next(vectors)) is None:
                result = embed_pb2.EmbedResult(error=to_status(NonFiniteResult()))
            else:
                result = embed_pb2.EmbedResult(
                    embedding=embedding, tokens=item.tokens, truncated=item.truncated, cache_hit=item.cache_hit
                )
            results.append(result)
        return Results(results, embedded)

    async def _chunks(
        self, requests: AsyncIterator[embed_pb2.EmbedStreamRequest], window: int, end: float | None, outage: Outage
    ) -> AsyncIterator[tuple[_Chunk, int]]:
        """The items of all messages, cut into chunks, with their estimated tokens."""
        options: EmbedOptions | None = None
        form: VectorFormat | None = None
        max_tokens, numbers = 0, count()
        async for request in requests:
            check = Check()
            check.count("items", request.items, 0, self._limits.max_items)
            if options is None or form is None:
                check.done()
                asked = retry_while_unavailable(lambda: self._backend.model(end), outage)
                model = await unless(self._stopping, asked)
                options, form = embed_options(request.options, model, self._limits, Check("options."))
                max_tokens = options.max_tokens or model.max_tokens
            elif request.HasField("options"):
                check.wrong("options", "only the first message of a stream may carry them")
            check.done()
            costs = [min(estimated_tokens(item.text), max_tokens) for item in request.items]
            for first, items, tokens in chunks(request.items, costs, window):
                yield _Chunk(items, first, next(numbers), options, form), tokens
        if self._stopping.is_set():
            raise NotReady("draining")

    async def _chunk(self, chunk: _Chunk, end: float | None, outage: Outage) -> _Answers:
        texts = [item.text for item in chunk.items]
        paths = [f"items[{chunk.first + position}]" for position in range(len(texts))]
        model: common_pb2.ModelIdentity | None = None
        try:
            outcome = await retry_while_unavailable(
                lambda: self.results(
                    texts, [f"{path}.text" for path in paths], chunk.options, chunk.form, end, chunk.number
                ),
                outage,
            )
            results = outcome.results
            model = outcome.embedded.model.model if outcome.embedded else None
        except Problem as problem:
            if not is_for_item(problem):
                raise
            results = [embed_pb2.EmbedResult(error=to_status(problem)) for _ in texts]
        answers = [
            embed_pb2.EmbedStreamResult(id=item.id, result=_long_id(path, item.id) or result)
            for path, item, result in zip(paths, chunk.items, results, strict=True)
        ]
        return _Answers(answers, model)


def describe(model: common_pb2.ModelIdentity, dimensions: int, items: int, tokens: int) -> None:
    """Sets the attributes of the call's span."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes(
            {
                names.OPERATION: names.EMBEDDINGS,
                names.PROVIDER: names.PROVIDER_WINNOW,
                names.RESPONSE_MODEL: model.name,
                names.FINGERPRINT: model.fingerprint,
                names.DIMENSIONS: dimensions,
                names.ITEMS: items,
                names.INPUT_TOKENS: tokens,
            }
        )


def _long_id(path: str, id_: str) -> embed_pb2.EmbedResult | None:
    if oversized("id", id_, MAX_ID_BYTES) is None:
        return None
    problem = InvalidField(f"{path}.id", f"has more than {MAX_ID_BYTES} bytes of UTF-8")
    return embed_pb2.EmbedResult(error=to_status(problem))


async def _encoded(embedded: Embedded, form: VectorFormat) -> list[embed_pb2.Embedding | None]:
    """A vector for each embedded text; None if all of its values are zero: it has no direction."""
    count = sum(isinstance(item, EmbeddedText) for item in embedded.items)
    if not count:
        return []

    def work() -> list[embed_pb2.Embedding | None]:
        rows = embedded.rows(form.dimensions)
        return [one if row.any() else None for one, row in zip(encode(rows, form.encoding), rows, strict=True)]

    if count * embedded.model.dimensions <= _INLINE_VALUES:
        return work()
    return await asyncio.to_thread(work)
