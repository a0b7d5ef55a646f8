"""EmbedService: wire → embedder → wire."""

import asyncio
import time
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import grpc
from google.rpc import status_pb2
from opentelemetry import trace

from gateway.checks import MAX_ID_BYTES, EmbedOptions, embed_options
from gateway.cost import Cost
from gateway.embedder import Embedded, Embedder, EmbedJob, vectors
from gateway.entries import VectorEntry
from gateway.frames import Frame, Frames
from gateway.patience import Outage, is_for_item, patiently
from gateway.problems import placed
from gateway.signals import Signals
from services.runtime import deadline
from services.runtime.errors import InvalidField, NotReady, Problem, to_status
from services.runtime.streams import fitting, in_completion_order, unless, until
from services.runtime.telemetry import names
from services.runtime.validate import Check, oversized
from services.runtime.vectors import encode
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"].full_name

# Values that are encoded on the event loop; more than that (some milliseconds) goes to a thread.
_INLINE_VALUES = 1 << 18
_CHUNK_ITEMS = 64
_CHUNKS_IN_WINDOW = 4
_CHARS_PER_TOKEN = 3
_ITEM_TOKENS = 8


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """`window_tokens`: most estimated tokens in flight. `outage_s`: how long a stream bears with absent workers."""

    window_tokens: int
    outage_s: float


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some items of one message; `first` is the position of the first of them in it."""

    items: Sequence[embed_pb2.EmbedStreamItem]
    first: int
    options: EmbedOptions


class EmbedServicer(embed_pb2_grpc.EmbedServiceServicer):
    """Serves the embedder. `stopping`: when set, streams end after what they have taken on, with NotReady."""

    def __init__(
        self,
        embedder: Embedder,
        frames: Frames,
        signals: Signals,
        limits: common_pb2.Limits,
        settings: StreamSettings,
        stopping: asyncio.Event,
    ) -> None:
        self._embedder, self._frames, self._signals = embedder, frames, signals
        self._limits, self._settings, self._stopping = limits, settings, stopping

    async def Embed(  # type: ignore[override]  # noqa: N802
        self, request: embed_pb2.EmbedRequest, context: Context
    ) -> embed_pb2.EmbedResponse | bytes:
        """One result for each text, in their order. Bytes are a serialised EmbedResponse."""
        began = time.perf_counter()
        until_ = deadline.absolute(context)
        check = Check()
        check.count("texts", request.texts, 1, self._limits.max_items)
        model = await self._embedder.model(until_)
        options = embed_options(request, model, self._limits, check)
        if (frames := self._frames.get(_frame_key(model, options), request.texts)) is not None:
            return self._from_frames(frames, model, options, began)
        paths = [f"texts[{position}]" for position in range(len(request.texts))]
        results, embedded = await self._results(request.texts, paths, options, until_)
        cost = embedded.cost if embedded else Cost()
        usage = embedded.usage if embedded else common_pb2.Usage()
        trace.get_current_span().set_attribute(names.INPUT_TOKENS, usage.input_tokens)
        return embed_pb2.EmbedResponse(
            results=results,
            model=(embedded.model if embedded else model).model,
            usage=usage,
            timings=common_pb2.Timings(
                total_ms=(time.perf_counter() - began) * 1e3,
                cache_ms=cost.cache_ms,
                tokenize_ms=cost.tokenize_ms,
                queue_ms=cost.queue_ms,
                forward_ms=cost.forward_ms,
            ),
        )

    def _from_frames(
        self, frames: Sequence[Frame], model: embed_pb2.GetModelResponse, options: EmbedOptions, began: float
    ) -> bytes:
        """The answer where every text is known in just this form: a concatenation."""
        count, tokens = len(frames), sum([frame.tokens for frame in frames])
        self._signals.cache_used("embed", count, 0)
        self._describe(model.model, options, count)
        trace.get_current_span().set_attribute(names.INPUT_TOKENS, tokens)
        rest = embed_pb2.EmbedResponse(
            model=model.model,
            usage=common_pb2.Usage(input_tokens=tokens, cache_hits=count),
            timings=common_pb2.Timings(total_ms=(time.perf_counter() - began) * 1e3),
        )
        parts = [frame.data for frame in frames]
        parts.append(rest.SerializeToString())
        return b"".join(parts)

    async def EmbedStream(  # noqa: N802
        self, request_iterator: AsyncIterator[embed_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        """Results in completion order."""
        until_ = deadline.absolute(context)

        outage = Outage(self._settings.outage_s)

        async def work(chunk: _Chunk) -> tuple[list[embed_pb2.EmbedStreamResult], common_pb2.ModelIdentity | None]:
            return await self._chunk(chunk, until_, outage)

        chunks = self._chunks(until(self._stopping, request_iterator), until_, outage)
        async with aclosing(in_completion_order(chunks, work, self._settings.window_tokens)) as answers:
            async for results, model in answers:
                for part in fitting(results, self._limits.max_message_bytes):
                    yield embed_pb2.EmbedStreamResponse(results=part, model=model)

    async def GetModel(self, request: embed_pb2.GetModelRequest, context: Context) -> embed_pb2.GetModelResponse:  # noqa: N802
        """The workers' model, and the gateway's limits."""
        answer = embed_pb2.GetModelResponse()
        answer.CopyFrom(await self._embedder.model(deadline.absolute(context)))
        answer.limits.CopyFrom(self._limits)
        return answer

    async def _results(
        self, texts: Sequence[str], paths: Sequence[str], options: EmbedOptions, until_: float | None
    ) -> tuple[list[embed_pb2.EmbedResult], Embedded | None]:
        """A result for each text; `paths` are their field paths. No Embedded where every text was refused."""
        limit = self._limits.max_text_bytes
        problems = {
            position: to_status(problem)
            for position, (path, text) in enumerate(zip(paths, texts, strict=True))
            if (problem := oversized(path, text, limit))
        }
        sound = [position for position in range(len(texts)) if position not in problems]
        if not sound:
            return [embed_pb2.EmbedResult(error=problems[position]) for position in range(len(texts))], None
        job: EmbedJob = replace(options.job, texts=[texts[position] for position in sound] if problems else texts)
        embedded = await self._embedder.embed(job, until_)
        self._describe(embedded.model.model, options, len(texts))
        key = _frame_key(embedded.model, options)
        entries = [answer.entry for answer in embedded.answers if answer.entry is not None]
        encoded = iter(await _encoded(entries, options))
        results: list[embed_pb2.EmbedResult] = []
        answers = iter(embedded.answers)
        for position, path in enumerate(paths):
            if position in problems:
                results.append(embed_pb2.EmbedResult(error=problems[position]))
                continue
            answer = next(answers)
            entry = answer.entry
            if entry is None:
                problem = placed(answer.error or status_pb2.Status(), path)
                results.append(embed_pb2.EmbedResult(error=problem, tokens=answer.tokens))
            else:
                result = embed_pb2.EmbedResult(
                    embedding=next(encoded), tokens=entry.tokens, truncated=entry.truncated, cache_hit=answer.hit
                )
                results.append(result)
                if answer.hit:  # asked for twice: there may be a third time
                    self._frames.put(key, texts[position], result)
        return results, embedded

    async def _chunks(
        self, requests: AsyncIterator[embed_pb2.EmbedStreamRequest], until_: float | None, outage: Outage
    ) -> AsyncIterator[tuple[_Chunk, int]]:
        """The items of all messages, cut into chunks, with their estimated tokens."""
        options: EmbedOptions | None = None
        most_tokens = self._settings.window_tokens // _CHUNKS_IN_WINDOW
        async for request in requests:
            check = Check()
            check.count("items", request.items, 0, self._limits.max_items)
            if options is None:
                check.done()
                asked = patiently(lambda: self._embedder.model(until_), outage)
                model = await unless(self._stopping, asked)
                options = embed_options(request.options, model, self._limits, Check("options."))
            elif request.HasField("options"):
                check.wrong("options", "only the first message of a stream may carry them")
            check.done()
            first, tokens = 0, 0
            for position, item in enumerate(request.items):
                cost = len(item.text) // _CHARS_PER_TOKEN + _ITEM_TOKENS
                if position > first and (position - first >= _CHUNK_ITEMS or tokens + cost > most_tokens):
                    yield _Chunk(request.items[first:position], first, options), tokens
                    first, tokens = position, 0
                tokens += cost
            if first < len(request.items):
                yield _Chunk(request.items[first:], first, options), tokens
        if self._stopping.is_set():
            raise NotReady("draining")

    async def _chunk(
        self, chunk: _Chunk, until_: float | None, outage: Outage
    ) -> tuple[list[embed_pb2.EmbedStreamResult], common_pb2.ModelIdentity | None]:
        """The results of a chunk, and the model that made them; None where there is none."""
        texts = [item.text for item in chunk.items]
        paths = [f"items[{chunk.first + position}].text" for position in range(len(texts))]
        model: common_pb2.ModelIdentity | None = None
        try:
            results, embedded = await patiently(lambda: self._results(texts, paths, chunk.options, until_), outage)
            model = embedded.model.model if embedded else None
        except Problem as problem:
            if not is_for_item(problem):
                raise
            results = [embed_pb2.EmbedResult(error=to_status(problem)) for _ in texts]
        answers = []
        for position, (item, result) in enumerate(zip(chunk.items, results, strict=True)):
            if oversized("id", item.id, MAX_ID_BYTES):
                wrong = InvalidField(
                    f"items[{chunk.first + position}].id", f"has more than {MAX_ID_BYTES} bytes of UTF-8"
                )
                result = embed_pb2.EmbedResult(error=to_status(wrong))
            answers.append(embed_pb2.EmbedStreamResult(id=item.id, result=result))
        return answers, model

    def _describe(self, model: common_pb2.ModelIdentity, options: EmbedOptions, items: int) -> None:
        span = trace.get_current_span()
        if not span.is_recording():
            return
        span.set_attributes(
            {
                names.OPERATION: names.EMBEDDINGS,
                names.PROVIDER: names.PROVIDER_WINNOW,
                names.RESPONSE_MODEL: model.name,
                names.FINGERPRINT: model.fingerprint,
                names.DIMENSIONS: options.dimensions,
                names.ITEMS: items,
            }
        )


def _frame_key(model: embed_pb2.GetModelResponse, options: EmbedOptions) -> Hashable:
    """All that decides how the result of a text looks, but the text."""
    job = options.job
    return (
        model.model.fingerprint,
        job.input_type,
        job.instruction,
        job.truncation,
        job.max_tokens,
        options.dimensions,
        options.encoding,
    )


async def _encoded(entries: Sequence[VectorEntry], options: EmbedOptions) -> list[embed_pb2.Embedding]:
    def work() -> list[embed_pb2.Embedding]:
        return encode(vectors(entries, options.dimensions), options.encoding)

    if not entries:
        return []
    if len(entries) * len(entries[0].data) // 2 <= _INLINE_VALUES:
        return work()
    return await asyncio.to_thread(work)
