"""One trace from a caller's span through gateway, cache, workers and batch, and the metrics beside it."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from deploy.local.stack import FREE_PORTS, Stack
from tests.support.otlp import Receiver, attributes, named, receiver
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

TRACE = bytes.fromhex("0af7651916cd43dd8448eb211c80319c")
CALLER = bytes.fromhex("b7ad6b7169203331")
WORKER_CALLS = {
    "winnow.embed.v1.EmbedService/Embed": "winnow-embed",
    "winnow.rerank.v1.RerankService/Rerank": "winnow-rerank",
}
SECRET = "zyzzyva"  # stands in texts only: it must not come out anywhere


@dataclass
class Traced:
    stack: Stack
    receiver: Receiver


@pytest.fixture
async def traced() -> AsyncIterator[Traced]:
    async with receiver() as spans:
        stack = Stack(FREE_PORTS, spans.environment())
        await asyncio.to_thread(stack.__enter__)
        try:
            yield Traced(stack, spans)
        finally:
            await asyncio.to_thread(stack.stop)


def children(spans: list[Span], parent: Span) -> list[Span]:
    return [span for span in spans if span.parent_span_id == parent.span_id]


def one(spans: list[Span], name: str) -> Span:
    found = named(spans, name)
    assert len(found) == 1, f"{name}: {sorted(span.name for span in spans)}"
    return found[0]


def descendants(spans: list[Span], parent: Span) -> list[Span]:
    below = children(spans, parent)
    return [span for child in below for span in (child, *descendants(spans, child))]


@pytest.mark.timeout(120)
async def test_one_search_is_one_trace(traced: Traced) -> None:
    async with grpc.aio.insecure_channel(traced.stack.addresses["gateway"]) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        await stub.CreateCollection(retrieval_pb2.CreateCollectionRequest(name="traced"), timeout=20)
        documents = [retrieval_pb2.Document(id=str(n), text=f"{SECRET} {n}") for n in range(4)]
        requests = [retrieval_pb2.UpsertDocumentsRequest(collection="traced", documents=documents)]
        answers = [answer async for answer in stub.UpsertDocuments(iter(requests), timeout=20)]
        assert sum(len(answer.results) for answer in answers) == 4
        request = retrieval_pb2.SearchRequest(query=SECRET, collection=retrieval_pb2.CollectionSource(name="traced"))
        metadata = (("traceparent", f"00-{TRACE.hex()}-{CALLER.hex()}-01"),)
        found = await stub.Search(request, metadata=metadata, timeout=20)
    assert len(found.hits) == 4
    assert not found.degraded

    def complete(spans: list[Span]) -> bool:
        mine = [span for span in spans if span.trace_id == TRACE]
        linked = {link.span_id for span in named(spans, "batch") for link in span.links if link.trace_id == TRACE}
        return len(named(mine, "forward")) == 2 and len(linked) == 2 and any(s.parent_span_id == CALLER for s in mine)

    spans = await traced.receiver.wait_for(complete)
    services = traced.receiver.services
    mine = [span for span in spans if span.trace_id == TRACE]
    root = next(span for span in mine if span.parent_span_id == CALLER)
    assert root.name == "winnow.retrieval.v1.RetrievalService/Search"
    assert services[root.span_id] == "winnow-gateway"
    below = descendants(mine, root)
    assert len(below) == len(mine) - 1, "a span of the trace hangs on nothing"

    stages = {str(attributes(span.attributes).get("gen_ai.operation.name", "")) for span in mine}
    assert {"embeddings", "retrieval", "rerank"} <= stages
    assert named(below, "cache.lookup")
    one(below, "index.search")

    for service, process in WORKER_CALLS.items():
        served = next(span for span in named(below, service) if span.kind == Span.SPAN_KIND_SERVER)
        called = next(span for span in below if span.span_id == served.parent_span_id)
        assert called.kind == Span.SPAN_KIND_CLIENT
        assert services[called.span_id] == "winnow-gateway"
        assert services[served.span_id] == process
        stages_below = descendants(mine, served)
        for name in ("tokenize", "queue", "forward"):
            part = one(stages_below, name)
            assert served.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano
        # The batch belongs to nobody; it is linked to every request that it served.
        request_spans = {span.span_id for span in (served, *stages_below)}
        batches = [span for span in named(spans, "batch") if request_spans & {link.span_id for link in span.links}]
        assert batches
        assert all(services[batch.span_id] == process for batch in batches)

    for span in spans:
        assert SECRET not in str(span), "a text was recorded"


@pytest.mark.timeout(120)
async def test_each_process_tells_prometheus_what_the_design_names(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.addresses["gateway"]) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        request = retrieval_pb2.SearchRequest(query="metrics")
        request.documents.documents.extend(retrieval_pb2.Document(text=text) for text in ("one", "two"))
        await stub.Search(request, timeout=20)
        await stub.Search(request, timeout=20)  # from the cache

    def scrape(process: str) -> str:
        with urllib.request.urlopen(f"http://{stack.addresses[f'{process} metrics']}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    for process in ("embed", "rerank"):
        shown = await asyncio.to_thread(scrape, process)
        for name in (
            "rpc_server_call_duration_seconds_bucket",
            "winnow_queue_tokens",
            "winnow_queue_seconds",
            "winnow_batch_tokens_bucket",
            "winnow_unique_token_ratio_bucket",
        ):
            assert f"\n{name}{{" in shown or f"\n{name} " in shown, f"{process}: {name}"
    shown = await asyncio.to_thread(scrape, "gateway")
    for name in ("rpc_server_call_duration_seconds_bucket", "winnow_cache_hits_total", "winnow_cache_misses_total"):
        assert f"\n{name}{{" in shown or f"\n{name} " in shown, f"gateway: {name}"
