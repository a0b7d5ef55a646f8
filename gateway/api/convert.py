"""Converts the gateway's own types to messages of RetrievalService."""

import base64
from collections.abc import Mapping, Sequence, Set

from google.protobuf.timestamp_pb2 import Timestamp

from gateway.index.collection import Collection, Quantization
from gateway.index.documents import Document, Outcome
from gateway.index.errors import document_lost
from gateway.index.upsert import UpsertResult
from gateway.search.types import Hit, SearchJob, SearchResult, Stage
from services.runtime.errors import NotFound, to_status
from services.runtime.validation import Check
from winnow.common.v1 import common_pb2
from winnow.retrieval.v1 import retrieval_pb2

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
QUANTIZATION = {
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


def search_response(job: SearchJob, found: SearchResult) -> retrieval_pb2.SearchResponse:
    """The response of a search."""
    first, second = found.first, found.second
    return retrieval_pb2.SearchResponse(
        hits=[_hit(job, hit) for hit in found.hits],
        degraded=bool(found.degradations),
        degradations=[
            retrieval_pb2.Degradation(stage=_STAGE[one.stage], reason=one.reason, message=one.message)
            for one in found.degradations
        ],
        timings=retrieval_pb2.SearchTimings(
            total_ms=found.total_ms,
            embed_ms=first.embed_ms,
            retrieve_ms=first.retrieve_ms,
            rerank_ms=second.rerank_ms,
        ),
        embed_model=first.model,
        rerank_model=second.model,
        embed_usage=first.usage,
        rerank_usage=second.usage,
        retrieval_weight=second.retrieval_weight,
    )


def _hit(job: SearchJob, found: Hit) -> retrieval_pb2.SearchHit:
    candidate, reranked = found.candidate, found.reranked
    return retrieval_pb2.SearchHit(
        id=candidate.document.id,
        score=found.score,
        retrieval_score=candidate.cosine,
        retrieval_rank=candidate.rank,
        rerank_score=reranked.probability if reranked else None,
        rerank_logit=reranked.logit if reranked else None,
        text=candidate.document.text if job.text else None,
        metadata_json=candidate.document.metadata if job.metadata else None,
    )


def upsert_result(result: UpsertResult) -> retrieval_pb2.UpsertResult:
    """The result of an upserted document."""
    return retrieval_pb2.UpsertResult(
        id=result.id,
        outcome=_OUTCOME[result.outcome] if result.outcome else retrieval_pb2.UPSERT_OUTCOME_UNSPECIFIED,
        error=result.error,
        truncated=result.truncated,
    )


def document_result(wanted: str, documents: Mapping[str, Document], lost: Set[str]) -> retrieval_pb2.GetDocumentResult:
    """A document, or why it was not read."""
    document = documents.get(wanted)
    if document is None:
        problem = document_lost(wanted) if wanted in lost else NotFound("document", wanted)
        return retrieval_pb2.GetDocumentResult(error=to_status(problem))
    wire = retrieval_pb2.Document(id=document.id, text=document.text, metadata_json=document.metadata)
    return retrieval_pb2.GetDocumentResult(document=wire)


def collection(described: Collection, aliases: Sequence[str], count: int) -> retrieval_pb2.Collection:
    """A collection, as a message."""
    created = Timestamp()
    created.FromNanoseconds(described.created_ns)
    return retrieval_pb2.Collection(
        name=described.name,
        model=common_pb2.ModelIdentity(
            name=described.model.name,
            revision=described.model.revision,
            fingerprint=described.model.fingerprint,
        ),
        dimensions=described.dimensions,
        quantization=_WIRE_QUANTIZATION[described.quantization],
        shards=len(described.shards),
        document_count=count,
        create_time=created,
        aliases=aliases,
    )


def page_token(last: str) -> str:
    """The token for the page after the item `last`."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def page_start(token: str, check: Check) -> str:
    """The name after which a page begins."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:  # of three kinds: not ASCII, not base64, not UTF-8
        check.wrong("page_token", "is not a token from ListCollections")
        return ""
