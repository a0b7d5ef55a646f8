"""RetrievalService, over the pipeline, the upserter and the index."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from opentelemetry import trace

from gateway.api import convert
from gateway.api.validation import MAX_PAGE, MAX_SHARDS, id_, name, pending_document, search_job
from gateway.index.collection import Collection, ModelRef
from gateway.index.errors import no_redis
from gateway.index.index import Index
from gateway.index.upsert import PendingDocument, Upserter
from gateway.models.embedder import Embedder
from gateway.search.pipeline import Pipeline
from services.api.models import check_dimensions
from services.runtime import deadline
from services.runtime.errors import NotFound, NotReady
from services.runtime.streams import fitting, until
from services.runtime.telemetry import names
from services.runtime.validation import Check
from winnow.common.v1 import common_pb2
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = retrieval_pb2.DESCRIPTOR.services_by_name["RetrievalService"].full_name
_DEFAULT_PAGE = 100


class RetrievalServicer(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Serves searches and collections. Without `index` and `upserter`, calls on collections are FAILED_PRECONDITION.

    `stopping`: when set, upsert streams finish what they accepted and end with NotReady.
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
        """Finds the best documents for a query."""
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
        return convert.search_response(job, found)

    async def UpsertDocuments(  # noqa: N802
        self, request_iterator: AsyncIterator[retrieval_pb2.UpsertDocumentsRequest], context: Context
    ) -> AsyncIterator[retrieval_pb2.UpsertDocumentsResponse]:
        """Stores documents; one result for each, in completion order."""
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
                    check.wrong("collection", "may be set in the first message of a stream only")
                    check.done()
                yield self._pending(request)

        async with aclosing(upserter.upsert(collection, messages())) as answers:
            async for results in answers:
                for part in fitting(
                    [convert.upsert_result(result) for result in results], self._limits.max_message_bytes
                ):
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
        """Deletes documents."""
        collection = await self._collection(request.collection, request.ids)
        ids = list(dict.fromkeys(request.ids))
        return retrieval_pb2.DeleteDocumentsResponse(deleted=await self._index.store.delete(collection, ids))

    async def GetDocuments(  # noqa: N802
        self, request: retrieval_pb2.GetDocumentsRequest, context: Context
    ) -> retrieval_pb2.GetDocumentsResponse:
        """Reads documents, in the order of the ids."""
        collection = await self._collection(request.collection, request.ids)
        documents, lost = await self._index.store.get(collection, list(dict.fromkeys(request.ids)))
        return retrieval_pb2.GetDocumentsResponse(
            results=[convert.document_result(wanted, documents, lost) for wanted in request.ids]
        )

    async def _collection(self, collection: str, ids: Sequence[str]) -> Collection:
        """Validates a request on some documents; returns their collection."""
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
        """Creates an empty collection for the current embedding model."""
        index = self._index
        check = Check()
        name(check, "name", request.name)
        check.enum("quantization", request.quantization, retrieval_pb2.Quantization)
        if request.HasField("shards"):
            check.within("shards", request.shards, 1, MAX_SHARDS)
        check.done()
        model = await self._embedder.model(deadline.absolute(context))
        dimensions = request.dimensions if request.HasField("dimensions") else model.dimensions
        check_dimensions(check, dimensions, model)
        check.done()
        identity = model.model
        made = await index.catalogue.create(
            request.name,
            ModelRef(identity.name, identity.revision, identity.fingerprint),
            dimensions,
            convert.QUANTIZATION[request.quantization],
            request.shards if request.HasField("shards") else None,
        )
        return retrieval_pb2.CreateCollectionResponse(collection=convert.collection(made, [], 0))

    async def GetCollection(  # noqa: N802
        self, request: retrieval_pb2.GetCollectionRequest, context: Context
    ) -> retrieval_pb2.GetCollectionResponse:
        """Describes one collection."""
        index = self._index
        check = Check()
        name(check, "name", request.name)
        check.done()
        wanted = await index.catalogue.resolve(request.name)
        for collection, aliases in await index.catalogue.listed():
            if collection.uid == wanted.uid:
                [count] = await index.store.count([collection])
                return retrieval_pb2.GetCollectionResponse(collection=convert.collection(collection, aliases, count))
        raise NotFound("collection", request.name)

    async def ListCollections(  # noqa: N802
        self, request: retrieval_pb2.ListCollectionsRequest, context: Context
    ) -> retrieval_pb2.ListCollectionsResponse:
        """A page of the collections, by name."""
        index = self._index
        check = Check()
        check.within("page_size", request.page_size, 0, MAX_PAGE)
        after = convert.page_start(request.page_token, check)
        check.done()
        size = request.page_size or _DEFAULT_PAGE
        rest = [pair for pair in await index.catalogue.listed() if pair[0].name > after]
        page = rest[:size]
        counts = await index.store.count([collection for collection, _ in page])
        return retrieval_pb2.ListCollectionsResponse(
            collections=[
                convert.collection(collection, aliases, count)
                for (collection, aliases), count in zip(page, counts, strict=True)
            ],
            next_page_token=convert.page_token(page[-1][0].name) if len(rest) > size else "",
        )

    async def DeleteCollection(  # noqa: N802
        self, request: retrieval_pb2.DeleteCollectionRequest, context: Context
    ) -> retrieval_pb2.DeleteCollectionResponse:
        """Deletes a collection."""
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
        """Deletes an alias."""
        index = self._index
        check = Check()
        name(check, "alias", request.alias)
        check.done()
        await index.catalogue.delete_alias(request.alias)
        return retrieval_pb2.DeleteAliasResponse()
