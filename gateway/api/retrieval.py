"""RetrievalService: wire → pipeline, upserter and index → wire."""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import trace

from gateway.api.validation import MAX_PAGE, MAX_SHARDS, id_, name, pending_document, search_job
from gateway.errors import document_lost
from gateway.index.catalogue import Collection, ModelRef, Quantization
from gateway.index.documents import Document, Outcome
from gateway.index.errors import no_redis
from gateway.index.index import Index
from gateway.index.upsert import PendingDocument, Upserter, UpsertResult
from gateway.models.embedder import Embedder
from gateway.search.pipeline import Pipeline
from gateway.search.types import Hit, SearchJob, Stage
from services.runtime import deadline
from services.runtime.errors import NotFound, NotReady, to_status
from services.runtime.streams import fitting, until
from services.runtime.telemetry import names
from services.runtime.validation import Check
from winnow.common.v1 import common_pb2
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = retrieval_pb2.DESCRIPTOR.services_by_name["RetrievalService"].full_name
_DEFAULT_PAGE = 100

_STAGE = {
    Stage.EMBED: retrieval_pb2.STAGE_EMBED,
    Stage.RETRIEVE: retrieval_pb2.STAGE_RETRIEVE,
    Stage.RERANK: retrieval_pb2.STAGE_RERANK,
}
_OUTCOME = {
    Outcome.CREATED: retrieval_pb2.UPSERT_OUTCOME_CREATED,
    Outcome.UPDATED: retrieval_pb2.UPSERT_OUTCOME_UPDATED,
    Outcome.UNCHANGED: retrieval_pb2.UPSERT_OUTCOME_UNCHANGED,
}
_QUANTIZATION = {
    retrieval_pb2.QUANTIZATION_UNSPECIFIED: Quantization.INT8,
    retrieval_pb2.QUANTIZATION_INT8: Quantization.INT8,
    retrieval_pb2.QUANTIZATION_NONE: Quantization.NONE,
    retrieval_pb2.QUANTIZATION_BINARY: Quantization.BINARY,
}
_WIRE_QUANTIZATION = {
    Quantization.INT8: retrieval_pb2.QUANTIZATION_INT8,
    Quantization.NONE: retrieval_pb2.QUANTIZATION_NONE,
    Quantization.BINARY: retrieval_pb2.QUANTIZATION_BINARY,
}


class RetrievalServicer(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Serves searches and collections. Without an `index` and `upserter`, collections are FAILED_PRECONDITION.

    `stopping`: when set, upsert streams end after what they have taken on, with NotReady.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        embedder: Embedder,
        index: Index | None,
        upserter: Upserter | None,
        limits: common_pb2.Limits,
        stopping: asyncio.Event,
    ) -> None:
        self._pipeline, self._embedder, self._limits, self._stopping = pipeline, embedder, limits, stopping
        self._maybe_index, self._maybe_upserter = index, upserter

    @property
    def _index(self) -> Index:
        if self._maybe_index is None:
            raise no_redis()
        return self._maybe_index

    async def Search(self, request: retrieval_pb2.SearchRequest, context: Context) -> retrieval_pb2.SearchResponse:  # noqa: N802
        """The best documents for a query."""
        job = search_job(request, self._limits)
        found = await self._pipeline.search(job, deadline.absolute(context))
        trace.get_current_span().set_attributes(
            {
                names.OPERATION: names.RETRIEVAL,
                names.PROVIDER: names.PROVIDER_WINNOW,
                names.TOP_K: job.candidates,
                names.RERANK_TOP_N: job.top_n,
                names.DEGRADED: bool(found.degradations),
            }
        )
        return retrieval_pb2.SearchResponse(
            hits=[_hit(job, hit) for hit in found.hits],
            degraded=bool(found.degradations),
            degradations=[
                retrieval_pb2.Degradation(stage=_STAGE[one.stage], reason=one.reason, message=one.message)
                for one in found.degradations
            ],
            timings=retrieval_pb2.SearchTimings(
                total_ms=found.total_ms,
                embed_ms=found.embed_ms,
                retrieve_ms=found.retrieve_ms,
                rerank_ms=found.rerank_ms,
            ),
            embed_model=found.embed_model,
            rerank_model=found.rerank_model,
            embed_usage=found.embed_usage,
            rerank_usage=found.rerank_usage,
            retrieval_weight=found.retrieval_weight,
        )

    async def UpsertDocuments(  # noqa: N802
        self, request_iterator: AsyncIterator[retrieval_pb2.UpsertDocumentsRequest], context: Context
    ) -> AsyncIterator[retrieval_pb2.UpsertDocumentsResponse]:
        """One answer for each document, in completion order."""
        index = self._index
        upserter = self._maybe_upserter
        assert upserter is not None
        requests = until(self._stopping, request_iterator)
        first = await anext(requests, None)
        if first is None:
            if self._stopping.is_set():
                raise NotReady("draining")
            return
        check = Check()
        name(check, "collection", first.collection)
        check.done()
        collection = await index.catalogue.resolve(first.collection)

        async def messages() -> AsyncIterator[Sequence[PendingDocument]]:
            yield self._pending(first)
            async for request in requests:
                if request.collection:
                    check = Check()
                    check.wrong("collection", "only the first message of a stream may name it")
                    check.done()
                yield self._pending(request)

        async with aclosing(upserter.upsert(collection, messages())) as answers:
            async for results in answers:
                for part in fitting([_upserted(result) for result in results], self._limits.max_message_bytes):
                    yield retrieval_pb2.UpsertDocumentsResponse(results=part)

    def _pending(self, request: retrieval_pb2.UpsertDocumentsRequest) -> list[PendingDocument]:
        check = Check()
        check.count("documents", request.documents, 0, self._limits.max_items)
        check.done()
        return [
            pending_document(document, f"documents[{position}]", self._limits)
            for position, document in enumerate(request.documents)
        ]

    async def DeleteDocuments(  # noqa: N802
        self, request: retrieval_pb2.DeleteDocumentsRequest, context: Context
    ) -> retrieval_pb2.DeleteDocumentsResponse:
        """Removes documents."""
        collection = await self._collection(request.collection, request.ids)
        ids = list(dict.fromkeys(request.ids))
        return retrieval_pb2.DeleteDocumentsResponse(deleted=await self._index.store.delete(collection, ids))

    async def GetDocuments(  # noqa: N802
        self, request: retrieval_pb2.GetDocumentsRequest, context: Context
    ) -> retrieval_pb2.GetDocumentsResponse:
        """Reads documents, in the order of the ids."""
        collection = await self._collection(request.collection, request.ids)
        documents, lost = await self._index.store.get(collection, list(dict.fromkeys(request.ids)))
        return retrieval_pb2.GetDocumentsResponse(results=[_got(wanted, documents, lost) for wanted in request.ids])

    async def _collection(self, collection: str, ids: Sequence[str]) -> Collection:
        """The collection of a request on some documents."""
        index = self._index
        check = Check()
        name(check, "collection", collection)
        check.count("ids", ids, 1, self._limits.max_items)
        for position, wanted in enumerate(ids):
            id_(check, f"ids[{position}]", wanted)
        check.done()
        return await index.catalogue.resolve(collection)

    async def CreateCollection(  # noqa: N802
        self, request: retrieval_pb2.CreateCollectionRequest, context: Context
    ) -> retrieval_pb2.CreateCollectionResponse:
        """Creates an empty collection for the model that is served now."""
        index = self._index
        check = Check()
        name(check, "name", request.name)
        check.enum("quantization", request.quantization, retrieval_pb2.Quantization)
        if request.HasField("shards"):
            check.within("shards", request.shards, 1, MAX_SHARDS)
        check.done()
        model = await self._embedder.model(deadline.absolute(context))
        dimensions = request.dimensions if request.HasField("dimensions") else model.dimensions
        check.within("dimensions", dimensions, model.min_dimensions, model.dimensions)
        check.done()
        identity = model.model
        made = await index.catalogue.create(
            request.name,
            ModelRef(identity.name, identity.revision, identity.fingerprint),
            dimensions,
            _QUANTIZATION[request.quantization],
            request.shards if request.HasField("shards") else None,
        )
        return retrieval_pb2.CreateCollectionResponse(collection=_collection(made, [], 0))

    async def GetCollection(  # noqa: N802
        self, request: retrieval_pb2.GetCollectionRequest, context: Context
    ) -> retrieval_pb2.GetCollectionResponse:
        """Reads one collection."""
        index = self._index
        check = Check()
        name(check, "name", request.name)
        check.done()
        wanted = await index.catalogue.resolve(request.name)
        for collection, aliases in await index.catalogue.listed():
            if collection.uid == wanted.uid:
                [count] = await index.store.count([collection])
                return retrieval_pb2.GetCollectionResponse(collection=_collection(collection, aliases, count))
        raise NotFound("collection", request.name)

    async def ListCollections(  # noqa: N802
        self, request: retrieval_pb2.ListCollectionsRequest, context: Context
    ) -> retrieval_pb2.ListCollectionsResponse:
        """A page of the collections, by name."""
        index = self._index
        check = Check()
        check.within("page_size", request.page_size, 0, MAX_PAGE)
        after = _page_start(request.page_token, check)
        check.done()
        size = request.page_size or _DEFAULT_PAGE
        rest = [pair for pair in await index.catalogue.listed() if pair[0].name > after]
        page = rest[:size]
        counts = await index.store.count([collection for collection, _ in page])
        return retrieval_pb2.ListCollectionsResponse(
            collections=[
                _collection(collection, aliases, count)
                for (collection, aliases), count in zip(page, counts, strict=True)
            ],
            next_page_token=_page_token(page[-1][0].name) if len(rest) > size else "",
        )

    async def DeleteCollection(  # noqa: N802
        self, request: retrieval_pb2.DeleteCollectionRequest, context: Context
    ) -> retrieval_pb2.DeleteCollectionResponse:
        """Removes a collection."""
        index = self._index
        check = Check()
        name(check, "name", request.name)
        check.done()
        await index.catalogue.remove(request.name)
        return retrieval_pb2.DeleteCollectionResponse()

    async def SetAlias(  # noqa: N802
        self, request: retrieval_pb2.SetAliasRequest, context: Context
    ) -> retrieval_pb2.SetAliasResponse:
        """Points an alias at a collection."""
        index = self._index
        check = Check()
        name(check, "alias", request.alias)
        name(check, "collection", request.collection)
        check.done()
        await index.catalogue.set_alias(request.alias, request.collection)
        return retrieval_pb2.SetAliasResponse()

    async def DeleteAlias(  # noqa: N802
        self, request: retrieval_pb2.DeleteAliasRequest, context: Context
    ) -> retrieval_pb2.DeleteAliasResponse:
        """Removes an alias."""
        index = self._index
        check = Check()
        name(check, "alias", request.alias)
        check.done()
        await index.catalogue.delete_alias(request.alias)
        return retrieval_pb2.DeleteAliasResponse()


def _hit(job: SearchJob, hit: Hit) -> retrieval_pb2.SearchHit:
    candidate, reranked = hit.candidate, hit.reranked
    return retrieval_pb2.SearchHit(
        id=candidate.document.id,
        score=hit.score,
        retrieval_score=candidate.cosine,
        retrieval_rank=candidate.rank,
        rerank_score=reranked.score if reranked else None,
        rerank_logit=reranked.logit if reranked else None,
        text=candidate.document.text if job.text else None,
        metadata_json=candidate.document.metadata if job.metadata else None,
    )


def _upserted(result: UpsertResult) -> retrieval_pb2.UpsertResult:
    return retrieval_pb2.UpsertResult(
        id=result.id,
        outcome=_OUTCOME[result.outcome] if result.outcome else retrieval_pb2.UPSERT_OUTCOME_UNSPECIFIED,
        error=result.error,
        truncated=result.truncated,
    )


def _got(wanted: str, documents: Mapping[str, Document], lost: Set[str]) -> retrieval_pb2.GetDocumentResult:
    document = documents.get(wanted)
    if document is None:
        problem = document_lost(wanted) if wanted in lost else NotFound("document", wanted)
        return retrieval_pb2.GetDocumentResult(error=to_status(problem))
    wire = retrieval_pb2.Document(id=document.id, text=document.text, metadata_json=document.metadata)
    return retrieval_pb2.GetDocumentResult(document=wire)


def _collection(collection: Collection, aliases: Sequence[str], count: int) -> retrieval_pb2.Collection:
    created = Timestamp()
    created.FromNanoseconds(collection.created_ns)
    return retrieval_pb2.Collection(
        name=collection.name,
        model=common_pb2.ModelIdentity(
            name=collection.model.name,
            revision=collection.model.revision,
            fingerprint=collection.model.fingerprint,
        ),
        dimensions=collection.dimensions,
        quantization=_WIRE_QUANTIZATION[collection.quantization],
        shards=len(collection.tags),
        document_count=count,
        create_time=created,
        aliases=aliases,
    )


def _page_token(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode()


def _page_start(token: str, check: Check) -> str:
    """The name after which the page begins."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:  # of three kinds: not ASCII, not base64, not UTF-8
        check.wrong("page_token", "is not one that ListCollections gave")
        return ""
