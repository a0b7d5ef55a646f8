"""A stream that is cut off, at whatever point, ends its span once, in the context in which it began."""
# ruff: noqa: N802 - methods are named by the contract

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from services.runtime.telemetry import names
from services.runtime.telemetry.setup import Telemetry
from tests.support.scripted import Scripted
from tests.support.serving import serving
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

# More than flow control lets through unread: its write stays open.
LARGE = common_pb2.ModelIdentity(name="x" * (16 << 20))


class Endless(Scripted):
    """EmbedStream answers until it is ended; each part notes the span that it runs under."""

    def __init__(self, *, large: bool = False, waits_before: int | None = None) -> None:
        super().__init__()
        self.response = embed_pb2.EmbedStreamResponse(model=LARGE) if large else embed_pb2.EmbedStreamResponse()
        self.waits_before = waits_before
        self.reached = asyncio.Event()
        """It waits, or has given its first response."""
        self.ended = asyncio.Event()
        self.current: set[trace.Span] = set()

    async def EmbedStream(
        self, request_iterator: AsyncIterator[embed_pb2.EmbedStreamRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        try:
            answered = 0
            while answered != self.waits_before:
                answered += 1
                self.current.add(trace.get_current_span())
                if self.waits_before is None:
                    self.reached.set()
                yield self.response
                self.current.add(trace.get_current_span())
            self.reached.set()
            await asyncio.Event().wait()
        finally:
            self.current.add(trace.get_current_span())
            self.ended.set()


class Kept(SpanExporter):
    """A process whose finished spans are kept."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.first = asyncio.Event()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self))
        self.telemetry = Telemetry(tracers)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        self.first.set()
        return SpanExportResult.SUCCESS


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("point", ["before the first", "after three", "within a write", "deadline", "channel closed"])
async def test_its_span_ends_once_and_nobody_complains(point: str, caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    service = Endless(
        large=point in ("within a write", "deadline", "channel closed"),
        waits_before={"before the first": 0, "after three": 3}.get(point),
    )
    async with asyncio.timeout(60), serving(service, telemetry=kept.telemetry) as served:
        channel = grpc.aio.insecure_channel(served.address)
        call = embed_pb2_grpc.EmbedServiceStub(channel).EmbedStream(timeout=2.0 if point == "deadline" else None)
        if point == "after three":
            for _ in range(3):
                await call.read()
        await service.reached.wait()
        if point == "channel closed":
            await channel.close(0)
        elif point != "deadline":
            call.cancel()
        await service.ended.wait()
        await kept.first.wait()
        await served.lifecycle.idle()
        await channel.close()
    gc.collect()
    (span,) = kept.spans
    assert span.attributes is not None
    code = span.attributes[names.RPC_STATUS]
    # At the deadline the client's own end of the call may arrive before the server's deadline.
    assert code == "CANCELLED" or (code == "DEADLINE_EXCEEDED" and point == "deadline")
    assert span.attributes.get(names.ERROR_TYPE) == (None if code == "CANCELLED" else code)
    assert {one.get_span_context().span_id for one in service.current} == {span.context.span_id}
    assert complaints(caplog) == []


async def test_many_at_once(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    service = Endless()
    async with asyncio.timeout(60), serving(service, telemetry=kept.telemetry) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        calls = [stub.EmbedStream() for _ in range(20)]
        await asyncio.gather(*(call.read() for call in calls))
        for call in calls:
            call.cancel()
        await served.lifecycle.idle()
    gc.collect()
    assert [span.attributes and span.attributes[names.RPC_STATUS] for span in kept.spans] == ["CANCELLED"] * 20
    assert complaints(caplog) == []
