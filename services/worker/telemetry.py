"""Metrics and spans of a worker: the queue, the batches, and the timings of each request.

A batch serves many requests, so the `batch` span has no parent; it is linked to the spans of all its requests. Each
request has the children `tokenize`, `queue` and, for each of its batches, `forward`, which is linked to the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext

from services.engine.types import BatchReport, QueueStats, Timings
from services.runtime.telemetry import names
from services.runtime.telemetry.setup import Telemetry

_TRIES = 3


@dataclass(eq=False, slots=True)
class Request:
    """One call of the engine and its span. The engine returns it with each batch that served it."""

    span: trace.Span
    started_ns: int
    detailed: bool
    batches: list[tuple[int, int, SpanContext | None]] = field(default_factory=list)
    """Start and end (time.time_ns) and span of each batch."""


class WorkerMetrics:
    """The worker's instruments and spans. `stats` returns the queue's statistics, or None while the model loads."""

    def __init__(self, telemetry: Telemetry, stats: Callable[[], QueueStats | None]) -> None:
        self._tracer = telemetry.tracer
        self._batch_tokens = telemetry.histogram(names.BATCH_TOKENS)
        self._batch_seconds = telemetry.histogram(names.BATCH_SECONDS)
        self._unique = telemetry.histogram(names.UNIQUE_TOKEN_RATIO)
        self._tokens = telemetry.counter(names.TOKENS)

        def read(value: Callable[[QueueStats], float]) -> Callable[[], float | None]:
            def now() -> float | None:
                # Runs on the exporter's thread, while the event loop may be modifying the queue.
                for _ in range(_TRIES):
                    try:
                        queue = stats()
                    except RuntimeError:
                        continue
                    return 0.0 if queue is None else value(queue)
                return None

            return now

        telemetry.gauge(names.QUEUE_TOKENS, read(lambda queue: queue.queued_tokens + queue.inflight_tokens))
        telemetry.gauge(names.QUEUE_SECONDS, read(lambda queue: queue.seconds))
        telemetry.gauge(names.TOKENS_PER_SECOND, read(lambda queue: queue.tokens_per_second))

    def request(self, detailed: bool = True) -> Request:
        """A Request for the current span, to be passed to the engine as its `context`.

        If `detailed` is False, the span gets no children: used for the later parts of a long stream. Batches are linked
        anyway.
        """
        return Request(trace.get_current_span(), time.time_ns(), detailed)

    def served(self, request: Request, spent: Timings, tokens: int) -> None:
        """Records the children of the request's span, with their real times, after the engine has finished."""
        self._tokens.add(tokens)
        if not (request.detailed and request.span.is_recording()):
            return
        parent = trace.set_span_in_context(request.span, Context())
        tokenized = request.started_ns + int(spent.tokenize_s * 1e9)
        self._child(names.TOKENIZE, parent, request.started_ns, tokenized)
        if request.batches:
            self._child(names.QUEUE, parent, tokenized, max(tokenized, request.batches[0][0]))
        for started, ended, batch in request.batches:
            self._child(names.FORWARD, parent, started, ended, batch)

    def batch(self, report: BatchReport) -> None:
        """Records a finished batch."""
        self._batch_tokens.record(report.tokens)
        self._batch_seconds.record((report.ended_ns - report.started_ns) / 1e9)
        if report.requested_tokens:
            self._unique.record(report.tokens / report.requested_tokens)
        requests = [request for request in report.requests if isinstance(request, Request)]
        sampled = [request.span.get_span_context() for request in requests if request.span.is_recording()]
        context: SpanContext | None = None
        if sampled:
            span = self._tracer.start_span(
                names.BATCH,
                Context(),
                links=[Link(one) for one in sampled],
                start_time=report.started_ns,
                attributes={
                    names.PRIORITY: report.priority.value,
                    names.BATCH_SEGMENTS: report.segments,
                    names.BATCH_UNIQUE_TOKENS: report.tokens,
                    names.BATCH_REQUESTED_TOKENS: report.requested_tokens,
                },
            )
            span.end(report.ended_ns)
            context = span.get_span_context()
        for request in requests:
            request.batches.append((report.started_ns, report.ended_ns, context))

    def _child(self, name: str, parent: Context, start: int, end: int, link: SpanContext | None = None) -> None:
        links = [Link(link)] if link is not None else None
        self._tracer.start_span(name, parent, start_time=start, links=links).end(end)
