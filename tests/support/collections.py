"""What tests do with collections in one line each: make one, look at it, read from it, search it."""

from winnow.retrieval.v1 import retrieval_pb2 as pb

CREATED, UPDATED, UNCHANGED = 1, 2, 3


async def create(gateway, name="docs", **options) -> pb.Collection:
    return (await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name=name, **options))).collection


async def get(gateway, name="docs") -> pb.Collection:
    return (await gateway.retrieval.GetCollection(pb.GetCollectionRequest(name=name))).collection


async def read(gateway, *ids, collection="docs") -> list[pb.GetDocumentResult]:
    return list((await gateway.retrieval.GetDocuments(
        pb.GetDocumentsRequest(collection=collection, ids=ids))).results)  # fmt: skip


def search(gateway, name, query="text", **options):
    source = pb.CollectionSource(name=name)
    return gateway.retrieval.Search(pb.SearchRequest(query=query, collection=source, **options))
