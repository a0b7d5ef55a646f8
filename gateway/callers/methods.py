"""The methods that a caller may be allowed, by name and in two groups."""

READ = frozenset(
    {"Embed", "EmbedStream", "Rerank", "GetModel", "Search", "GetDocuments", "GetCollection", "ListCollections"}
)
WRITE = frozenset(
    {"UpsertDocuments", "DeleteDocuments", "CreateCollection", "DeleteCollection", "SetAlias", "DeleteAlias"}
)
GROUPS = {"read": READ, "write": WRITE}
STREAMS = frozenset({"EmbedStream", "UpsertDocuments"})
"""Methods whose callers send as fast as they are read."""


def short_name(method: str) -> str:
    """The name of a method of the contract: "Search" of "winnow.retrieval.v1.RetrievalService/Search"."""
    return method.rpartition("/")[2]


def group_of(method: str) -> str:
    """The group that contains the method."""
    return next(name for name, methods in GROUPS.items() if method in methods)
