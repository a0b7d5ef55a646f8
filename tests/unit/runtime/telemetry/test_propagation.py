"""What a process takes from its caller's trace context, and passes on."""

from typing import Any

import grpc
import pytest
from opentelemetry import baggage, trace

from services.runtime.channel import channel
from services.runtime.telemetry.setup import Telemetry
from tests.support.scripted import Scripted
from tests.support.serving import serving
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def started(propagators: str, **more: str) -> Telemetry:
    return Telemetry.start("winnow-test", None, {"OTEL_PROPAGATORS": propagators, **more})


@pytest.mark.parametrize(
    ("propagators", "trace_goes_on", "baggage_goes_on"),
    [
        ("tracecontext,baggage", True, True),
        ("tracecontext", True, False),
        ("baggage", False, True),
        ("none", False, False),
    ],
)
@pytest.mark.parametrize("disabled", ["false", "true"])
async def test_propagators_decide_what_is_taken_and_what_is_sent(
    propagators: str, trace_goes_on: bool, baggage_goes_on: bool, disabled: str
) -> None:
    """Caller → first server → second server, as caller → gateway → worker."""
    telemetry = started(propagators, OTEL_SDK_DISABLED=disabled)
    received: list[dict[str, str]] = []
    seen: list[tuple[int, object]] = []

    async def last(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        received.append({str(name): str(value) for name, value in context.invocation_metadata() or ()})

    async with serving(Scripted(last), telemetry=telemetry) as second, channel(second.address, telemetry) as to:

        async def first(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            seen.append((trace.get_current_span().get_span_context().trace_id, baggage.get_baggage("tenant")))
            await embed_pb2_grpc.EmbedServiceStub(to).Embed(request, timeout=20)

        async with serving(Scripted(first), telemetry=telemetry) as served:
            metadata = (("traceparent", TRACEPARENT), ("baggage", "tenant=blue"))
            stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
            await stub.Embed(embed_pb2.EmbedRequest(), metadata=metadata, timeout=20)
    trace_id = TRACEPARENT.split("-")[1]
    ((own, tenant),) = seen
    assert (f"{own:032x}" == trace_id) == trace_goes_on
    assert tenant == ("blue" if baggage_goes_on else None)
    assert (trace_id in received[0].get("traceparent", "")) == trace_goes_on
    assert received[0].get("baggage") == ("tenant=blue" if baggage_goes_on else None)
    telemetry.shutdown()


@pytest.mark.parametrize(
    "value", ["", "00", "00-xyz-1-01", "ff-" + "a" * 500, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"]
)
async def test_a_malformed_trace_context_is_ignored(value: str) -> None:
    async with serving(Scripted()) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        metadata = (
            ("traceparent", value),
            ("tracestate", value),
            ("traceparent-bin", b"\xff\x00"),
            ("baggage", "=;,="),
        )
        await stub.Embed(embed_pb2.EmbedRequest(), metadata=metadata, timeout=30)
