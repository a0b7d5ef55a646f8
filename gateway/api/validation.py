"""Validation of RetrievalService requests, before any work is done, and their resolved form."""

import re
from collections.abc import Sequence

from gateway.index.documents import Document, metadata_error
from gateway.index.upsert import PendingDocument
from gateway.search.types import Policy, SearchJob
from services.api.options import check_instruction
from services.runtime.errors import InvalidFields, Problem
from services.runtime.validation import Check
from winnow.common.v1 import common_pb2
from winnow.retrieval.v1 import retrieval_pb2

MAX_ID_BYTES = 512
MAX_FILTER_BYTES = 4096
MAX_CANDIDATES = 1000
MAX_SHARDS = 256
MAX_PAGE = 1000
_DEFAULT_CANDIDATES = 50
_DEFAULT_TOP_N = 10
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

_POLICY = {
    retrieval_pb2.RERANK_POLICY_UNSPECIFIED: Policy.BEST_EFFORT,
    retrieval_pb2.RERANK_POLICY_BEST_EFFORT: Policy.BEST_EFFORT,
    retrieval_pb2.RERANK_POLICY_REQUIRED: Policy.REQUIRED,
    retrieval_pb2.RERANK_POLICY_SKIP: Policy.SKIP,
}


def search_job(request: retrieval_pb2.SearchRequest, limits: common_pb2.Limits) -> SearchJob:
    """The validated job of a request. Raises InvalidFields."""
    check = Check()
    check.filled("query", request.query)
    check.size("query", request.query, limits.max_text_bytes)
    source = request.WhichOneof("source")
    if source is None:
        check.wrong("source", "is not set; set collection or documents")
    elif source == "collection":
        name(check, "collection.name", request.collection.name)
        check.size("collection.filter", request.collection.filter, MAX_FILTER_BYTES)
    else:
        _inline(check, request.documents.documents, limits)
    if request.HasField("instruction"):
        check_instruction(check, request.instruction, limits)
    candidates = request.candidates if request.HasField("candidates") else _DEFAULT_CANDIDATES
    check.within("candidates", candidates, 1, MAX_CANDIDATES)
    top_n = request.top_n if request.HasField("top_n") else min(_DEFAULT_TOP_N, candidates)
    if request.HasField("top_n"):
        check.within("top_n", top_n, 1, candidates)
    check.enum("rerank", request.rerank, retrieval_pb2.RerankPolicy)
    if request.HasField("retrieval_weight"):
        check.within("retrieval_weight", request.retrieval_weight, 0, 1)
    if request.HasField("min_score"):
        check.within("min_score", request.min_score, -1, 1)
    check.enum("priority", request.priority, common_pb2.Priority)
    check.done()
    inline = source == "documents"
    return SearchJob(
        query=request.query,
        collection=None if inline else request.collection.name,
        filter="" if inline else request.collection.filter.strip(),
        documents=[
            Document(document.id or str(position), document.text, document.metadata_json)
            for position, document in enumerate(request.documents.documents)
        ],
        instruction=request.instruction if request.HasField("instruction") else None,
        candidates=candidates,
        top_n=top_n,
        policy=_POLICY[request.rerank],
        retrieval_weight=request.retrieval_weight if request.HasField("retrieval_weight") else None,
        min_score=request.min_score if request.HasField("min_score") else None,
        text=request.return_text if request.HasField("return_text") else True,
        metadata=request.return_metadata if request.HasField("return_metadata") else True,
        priority=request.priority or common_pb2.PRIORITY_INTERACTIVE,
    )


def pending_document(document: retrieval_pb2.Document, path: str, limits: common_pb2.Limits) -> PendingDocument:
    """A document of an upsert. If it is invalid, only this document fails."""
    check = Check(f"{path}.")
    id_(check, "id", document.id)
    check.filled("text", document.text)
    check.size("text", document.text, limits.max_text_bytes)
    _metadata(check, "metadata_json", document.metadata_json)
    error: Problem | None = None
    try:
        check.done()
    except InvalidFields as wrong:
        error = wrong
    return PendingDocument(Document(document.id, document.text, document.metadata_json), path, error)


def name(check: Check, field: str, value: str) -> None:
    """Checks the name of a collection or an alias."""
    if not _NAME.fullmatch(value):
        check.wrong(field, 'is not 1 to 64 characters of a-z, 0-9, "-" and "_", beginning with a letter or digit')


def id_(check: Check, field: str, value: str) -> None:
    """Checks the id of a document."""
    if not value:
        check.wrong(field, "is empty")
    check.size(field, value, MAX_ID_BYTES)


def _inline(check: Check, documents: Sequence[retrieval_pb2.Document], limits: common_pb2.Limits) -> None:
    check.count("documents.documents", documents, 1, min(MAX_CANDIDATES, limits.max_items))
    seen: dict[str, int] = {}
    for position, document in enumerate(documents):
        path = f"documents.documents[{position}]"
        known = document.id or str(position)
        check.size(f"{path}.id", document.id, MAX_ID_BYTES)
        if known in seen:
            check.wrong(f"{path}.id", f"is also the id of documents[{seen[known]}]; ids must be unique")
        seen.setdefault(known, position)
        check.size(f"{path}.text", document.text, limits.max_text_bytes)
        _metadata(check, f"{path}.metadata_json", document.metadata_json)


def _metadata(check: Check, field: str, value: str) -> None:
    wrong = metadata_error(value)
    if wrong is not None:
        check.wrong(field, wrong)
