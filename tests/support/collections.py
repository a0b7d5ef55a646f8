"""What tests do with collections in one line each: make one, look at it, read from it, search it."""

from collections.abc import Awaitable
from typing import Any

from tests.support.gateway import Running
from winnow.retrieval.v1 import retrieval_pb2 as pb

CREATED, UPDATED, UNCHANGED = 1, 2, 3


async def create(gateway: Running, name: str = "docs", **options: Any) -> pb.Collection:
    return (await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name=name, **options))).collection


async def get(gateway: Running, name: str = "docs") -> pb.Collection:
    return (await gateway.retrieval.GetCollection(pb.GetCollectionRequest(name=name))).collection


async def read(gateway: Running, *ids: str, collection: str = "docs") -> list[pb.GetDocumentResult]:
    return list((await gateway.retrieval.GetDocuments(
        pb.GetDocumentsRequest(collection=collection, ids=ids))).results)  # fmt: skip


def search(gateway: Running, name: str, query: str = "text", **options: Any) -> Awaitable[pb.SearchResponse]:
    source = pb.CollectionSource(name=name)
    return gateway.retrieval.Search(pb.SearchRequest(query=query, collection=source, **options))
