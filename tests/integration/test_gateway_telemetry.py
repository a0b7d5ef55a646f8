"""What the gateway reports of itself: spans of its stages, its counters, and never a text."""

from collections import Counter

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.runtime.errors import ReplicaFull
from services.runtime.telemetry import names
from services.runtime.telemetry.setup import Telemetry
from tests.support.gateway import NOWHERE, flushed, running
from tests.support.redis import RedisProcess
from tests.support.serving import serving
from tests.support.workers import EmbedWorker
from winnow.embed.v1 import embed_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

SECRET = "zyzzyva"


class Observed:
    """Telemetry kept in memory."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.exporter = InMemorySpanExporter()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.telemetry = Telemetry(tracers, MeterProvider([self.reader]))

    def counts(self, instrument: names.Instrument) -> Counter[tuple[str, ...]]:
        """Sums by the values of the attributes."""
        found: Counter[tuple[str, ...]] = Counter()
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == instrument.name:
                        for point in metric.data.data_points:
                            assert isinstance(point, NumberDataPoint)
                            labels = tuple(sorted(map(str, (point.attributes or {}).values())))
                            found[labels] += int(point.value)
        return found


async def test_hits_misses_and_degraded_answers_are_counted(redis8: RedisProcess) -> None:
    observed = Observed()
    documents = pb.InlineDocuments(documents=[pb.Document(text=f"{SECRET} {n}") for n in range(3)])
    async with running(redis8.url, no_rerank=True, telemetry=observed.telemetry) as gateway:
        for _ in range(3):
            await gateway.retrieval.Search(pb.SearchRequest(query=SECRET, documents=documents))
            await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=[SECRET]))
        assert observed.counts(names.CACHE_HITS) == {("embed",): 2 * 4 + 2}
        assert observed.counts(names.CACHE_MISSES) == {("embed",): 4 + 1}
        assert observed.counts(names.DEGRADED_ANSWERS) == {("RERANK_UNAVAILABLE", "rerank"): 3}
        assert not observed.counts(names.CACHE_ERRORS)
    spans = observed.exporter.get_finished_spans()
    assert {names.CACHE_LOOKUP, names.EMBEDDINGS, names.RETRIEVAL, names.RERANK} <= {span.name for span in spans}
    search = next(span for span in spans if span.name.endswith("/Search"))
    assert search.attributes is not None
    assert search.attributes[names.DEGRADED] is True
    assert search.attributes[names.OPERATION] == names.RETRIEVAL
    lookups = [span for span in spans if span.name == names.CACHE_LOOKUP]
    assert sum(int(str((span.attributes or {})[names.CACHE_MISSES_COUNT])) for span in lookups) == 5
    for span in spans:
        assert SECRET not in span.to_json()


async def test_a_cache_that_fails_is_counted() -> None:
    observed = Observed()
    async with running(f"redis://{NOWHERE}", telemetry=observed.telemetry) as gateway:
        await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=[SECRET]))
        await flushed(gateway)
        errors = observed.counts(names.CACHE_ERRORS)
        assert errors["ConnectionError", "read"] >= 1
        assert errors["ConnectionError", "write"] >= 1


async def test_each_attempt_is_a_span_of_its_own_and_counted() -> None:
    observed = Observed()
    full, well = EmbedWorker(), EmbedWorker()
    full.problem = ReplicaFull(0.01)
    async with serving(full) as first, serving(well) as second:
        target = f"ipv4:{first.address},{second.address}"
        async with running(embed_target=target, telemetry=observed.telemetry, workers_hedge_tokens=0) as gateway:
            number = 0
            while not observed.counts(names.WORKER_ATTEMPTS)["embed", "retry"]:
                number += 1
                await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=[f"{SECRET} {number}"]))
            counts = observed.counts(names.WORKER_ATTEMPTS)
            states = observed.counts(names.WORKER_REPLICAS)
    assert sum(count for labels, count in states.items() if "embed" in labels) == 2
    assert counts["embed", "retry"] == 1
    spans = [span for span in observed.exporter.get_finished_spans() if span.name.endswith("EmbedService/Embed")]
    clients = [span for span in spans if span.kind is SpanKind.CLIENT]
    refused = next(span for span in clients if (span.attributes or {})[names.RPC_STATUS] == "UNAVAILABLE")
    assert refused.parent is not None
    siblings = [span for span in clients if span.parent and span.parent.span_id == refused.parent.span_id]
    assert [(span.attributes or {})[names.RPC_STATUS] for span in siblings] == ["UNAVAILABLE", "OK"]
    ports = [(span.attributes or {})[names.SERVER_PORT] for span in siblings]
    assert ports == [int(served.address.rpartition(":")[2]) for served in (first, second)]


async def test_a_search_of_a_collection_has_a_span_of_its_own(redis8: RedisProcess) -> None:
    observed = Observed()
    async with running(redis8.url, telemetry=observed.telemetry) as gateway:
        await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="docs"))
        await gateway.upsert("docs", pb.Document(id="a", text=SECRET))
        await gateway.retrieval.Search(pb.SearchRequest(query=SECRET, collection=pb.CollectionSource(name="docs")))
    spans = {span.name: span for span in observed.exporter.get_finished_spans()}
    by_id = {span.context.span_id: span for span in spans.values()}
    index = spans[names.INDEX_SEARCH]
    assert index.attributes is not None
    assert index.attributes[names.ITEMS] == 1
    assert index.parent is not None
    stage = by_id[index.parent.span_id]
    assert stage.parent is not None
    assert stage.name == names.RETRIEVAL
    assert by_id[stage.parent.span_id].name == "winnow.retrieval.v1.RetrievalService/Search"
