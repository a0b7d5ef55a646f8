"""A gateway in the test's own process, in front of stand-in workers, with stubs to call it by."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from gateway.application import Gateway, front
from gateway.settings import GatewaySettings
from services.runtime.telemetry.setup import Telemetry
from tests.support.serving import Served, WorkerLikeSettings, serving
from tests.support.workers import EmbedWorker, RerankWorker
from winnow.embed.v1 import embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

# Nobody listens there, and a connection is refused at once.
NOWHERE = "127.0.0.1:1"


@dataclass
class Running:
    """A gateway and what it stands on."""

    gateway: Gateway
    served: Served
    embed_worker: EmbedWorker
    rerank_worker: RerankWorker
    workers: AsyncExitStack

    def __post_init__(self) -> None:
        channel = self.served.channel
        self.embed = embed_pb2_grpc.EmbedServiceStub(channel)
        self.rerank = rerank_pb2_grpc.RerankServiceStub(channel)
        self.retrieval = retrieval_pb2_grpc.RetrievalServiceStub(channel)

    async def stop_workers(self) -> None:
        await self.workers.aclose()

    async def upsert(self, collection: str, *documents: retrieval_pb2.Document) -> list[retrieval_pb2.UpsertResult]:
        """One message with all documents."""

        async def requests() -> AsyncIterator[retrieval_pb2.UpsertDocumentsRequest]:
            yield retrieval_pb2.UpsertDocumentsRequest(collection=collection, documents=documents)

        return [result async for response in self.retrieval.UpsertDocuments(requests()) for result in response.results]


@asynccontextmanager
async def running(
    redis_url: str | None = None,
    *,
    embed: EmbedWorker | None = None,
    rerank: RerankWorker | None = None,
    no_embed: bool = False,
    no_rerank: bool = False,
    telemetry: Telemetry | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """The gateway until the block ends. `no_embed`, `no_rerank`: there is no such worker."""
    embed, rerank = embed or EmbedWorker(), rerank or RerankWorker()
    like = WorkerLikeSettings()
    async with AsyncExitStack() as workers:
        embed_at = NOWHERE if no_embed else (await workers.enter_async_context(serving(embed, like))).address
        rerank_at = NOWHERE if no_rerank else (await workers.enter_async_context(serving(rerank, like))).address
        chosen = {
            "listen": "127.0.0.1:0",
            "metrics_listen": None,
            "embed_target": embed_at,
            "rerank_target": rerank_at,
            "redis_url": redis_url,
            # Generous: these tests share two cores with others. The fault tests set their own.
            "cache_read_timeout_ms": 1000,
            "stream_retry_seconds": 5,
            **settings,
        }
        made = GatewaySettings(**chosen)
        gateway = Gateway(made, telemetry or Telemetry())
        async with serving(gateway, made, telemetry, make_front=front(made)) as served:
            yield Running(gateway, served, embed, rerank, workers)


async def flushed(gateway: Running) -> None:
    assert gateway.gateway._remote is not None
    await gateway.gateway._remote.flush()
