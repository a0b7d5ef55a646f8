"""A worker's spans and metrics, received by a real OTLP receiver and read from its Prometheus endpoint."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from services.runtime.channel import channel
from services.runtime.telemetry import names
from services.runtime.telemetry.setup import Telemetry
from tests.support.otlp import Receiver, attributes, named
from tests.support.tiny import Tiny, embedding, held, until_calls, until_queued
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

SERVER = Span.SPAN_KIND_SERVER
STAGES = [names.BATCH, names.FORWARD, names.QUEUE, names.TOKENIZE]


@pytest.fixture
async def telemetry(collected: Receiver) -> AsyncIterator[Telemetry]:
    made = Telemetry.start("winnow-embed", "127.0.0.1:0")
    yield made
    await asyncio.to_thread(made.shutdown)


async def test_each_request_has_its_stages_and_is_linked_to_its_batch(
    tiny: Tiny, telemetry: Telemetry, collected: Receiver
) -> None:
    async with embedding(tiny, telemetry) as served, channel(served.address, telemetry) as to:
        stub = embed_pb2_grpc.EmbedServiceStub(to)
        with held(served.worker):  # both wait, so that one batch serves them
            first = stub.Embed(embed_pb2.EmbedRequest(texts=["warm up"]), timeout=30)
            await until_queued(served.worker)
            calls = [stub.Embed(embed_pb2.EmbedRequest(texts=[f"a secret {i}"]), timeout=30) for i in range(2)]
            await until_calls(served.lifecycle, 3)
        await asyncio.gather(first, *calls)
        spans = await collected.wait_for(lambda spans: len(named(spans, names.FORWARD)) == 3 and len(spans) >= 17)
    by_id = {span.span_id: span for span in spans}
    servers = [span for span in spans if span.kind == SERVER]
    assert len(servers) == 3
    batches = named(spans, names.BATCH)
    assert [len(batch.links) for batch in sorted(batches, key=lambda span: span.start_time_unix_nano)] == [1, 2]
    for batch in batches:
        assert batch.parent_span_id == b""
        assert {by_id[link.span_id].kind for link in batch.links} == {SERVER}
        found = attributes(batch.attributes)
        assert found[names.BATCH_SEGMENTS] == len(batch.links)
        assert 0 < found[names.BATCH_UNIQUE_TOKENS] <= found[names.BATCH_REQUESTED_TOKENS]
        assert found[names.PRIORITY] == "interactive"
    for server in servers:
        assert by_id[server.parent_span_id].kind == Span.SPAN_KIND_CLIENT
        children = {span.name: span for span in spans if span.parent_span_id == server.span_id}
        assert set(children) == {names.TOKENIZE, names.QUEUE, names.FORWARD}
        tokenize, queue, forward = (children[name] for name in (names.TOKENIZE, names.QUEUE, names.FORWARD))
        assert server.start_time_unix_nano <= tokenize.start_time_unix_nano
        assert tokenize.end_time_unix_nano <= queue.start_time_unix_nano <= queue.end_time_unix_nano
        assert queue.end_time_unix_nano <= forward.start_time_unix_nano < forward.end_time_unix_nano
        (link,) = forward.links
        assert server.span_id in {request.span_id for request in by_id[link.span_id].links}
        found = attributes(server.attributes)
        assert found[names.OPERATION] == "embeddings"
        assert found[names.RESPONSE_MODEL] == "embed"
        assert found[names.INPUT_TOKENS] > 0
    assert "secret" not in str(spans)


async def test_an_unsampled_caller_costs_no_spans(tiny: Tiny, telemetry: Telemetry, collected: Receiver) -> None:
    async with embedding(tiny, telemetry) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        unsampled = (("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-00"),)
        sampled = (("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),)
        await stub.Embed(embed_pb2.EmbedRequest(texts=["x"]), timeout=30, metadata=unsampled)
        await stub.Embed(embed_pb2.EmbedRequest(texts=["x"]), timeout=30, metadata=sampled)
        spans = await collected.wait_for(lambda spans: len(spans) >= 5)
    assert sorted(span.name for span in spans) == [
        "batch",
        "forward",
        "queue",
        "tokenize",
        "winnow.embed.v1.EmbedService/Embed",
    ]
    assert {span.trace_id.hex() for span in spans if span.name != names.BATCH} == {"a" * 32}


async def test_the_endpoint_tells_queue_and_batches(tiny: Tiny, telemetry: Telemetry) -> None:
    def read() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{telemetry.metrics_address}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    async with embedding(tiny, telemetry) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        with held(served.worker):
            call = stub.Embed(embed_pb2.EmbedRequest(texts=["gravity"] * 10), timeout=30)
            await until_queued(served.worker, 10)
            waiting = await asyncio.to_thread(read)
        response = await call
        done = await asyncio.to_thread(read)
    assert waiting["winnow_queue_tokens"] >= 10
    assert waiting["winnow_queue_seconds"] == pytest.approx(
        waiting["winnow_queue_tokens"] / waiting["winnow_tokens_per_second"], rel=0.01
    )
    assert done["winnow_queue_tokens"] == done["winnow_queue_seconds"] == 0
    assert done["winnow_batch_tokens_count"] == done["winnow_batch_seconds_count"] >= 1
    assert done["winnow_unique_token_ratio_sum"] / done["winnow_unique_token_ratio_count"] <= 1
    assert done["winnow_tokens_total"] == response.usage.input_tokens
