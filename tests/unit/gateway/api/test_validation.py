"""A request's defaults, and which of its fields are wrong."""

from typing import Any

import pytest

from gateway.api.validation import MAX_ID_BYTES, pending_document, search_job
from gateway.search.types import Policy
from services.runtime.errors import InvalidFields
from winnow.common.v1 import common_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

LIMITS = common_pb2.Limits(max_items=3, max_text_bytes=100, max_message_bytes=1 << 20)
COLLECTION = pb.CollectionSource(name="docs")


def wrong_fields(request: pb.SearchRequest) -> list[str]:
    with pytest.raises(InvalidFields) as raised:
        search_job(request, LIMITS)
    return [field for field, _ in raised.value.violations]


def test_defaults_are_those_of_the_contract() -> None:
    job = search_job(pb.SearchRequest(query="q", collection=COLLECTION), LIMITS)
    assert (job.collection, job.filter, job.documents) == ("docs", "", [])
    assert (job.candidates, job.top_n, job.policy) == (50, 10, Policy.BEST_EFFORT)
    assert (job.instruction, job.retrieval_weight, job.min_score) == (None, None, None)
    assert (job.text, job.metadata, job.priority) == (True, True, common_pb2.PRIORITY_INTERACTIVE)


def test_no_more_hits_than_candidates_by_default() -> None:
    assert search_job(pb.SearchRequest(query="q", collection=COLLECTION, candidates=4), LIMITS).top_n == 4


def test_a_given_zero_is_not_a_default() -> None:
    request = pb.SearchRequest(query="q", collection=COLLECTION, retrieval_weight=0, min_score=0, return_text=False)
    job = search_job(request, LIMITS)
    assert (job.retrieval_weight, job.min_score, job.text) == (0.0, 0.0, False)


def test_documents_without_an_id_are_named_by_their_position() -> None:
    documents = [pb.Document(text="a"), pb.Document(id="x", text="b")]
    job = search_job(pb.SearchRequest(query="q", documents=pb.InlineDocuments(documents=documents)), LIMITS)
    assert job.collection is None
    assert [document.id for document in job.documents] == ["0", "x"]


@pytest.mark.parametrize(
    ("documents", "fields"),
    [
        ([], ["documents.documents"]),
        ([pb.Document(text="a")] * 4, ["documents.documents"]),
        ([pb.Document(id="1", text="a"), pb.Document(text="b")], ["documents.documents[1].id"]),
        ([pb.Document(text="a" * 101)], ["documents.documents[0].text"]),
        ([pb.Document(text="a", metadata_json="{")], ["documents.documents[0].metadata_json"]),
    ],
)
def test_wrong_documents_are_named(documents: list[pb.Document], fields: list[str]) -> None:
    assert wrong_fields(pb.SearchRequest(query="q", documents=pb.InlineDocuments(documents=documents))) == fields


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"query": " "}, ["query"]),
        ({"collection": None}, ["source"]),
        ({"collection": pb.CollectionSource(name="A b")}, ["collection.name"]),
        ({"candidates": 0, "top_n": 0}, ["candidates", "top_n"]),
        ({"candidates": 5, "top_n": 6}, ["top_n"]),
        ({"retrieval_weight": 1.5, "min_score": float("nan")}, ["retrieval_weight", "min_score"]),
    ],
)
def test_wrong_fields_are_named_together(fields: dict[str, Any], named: list[str]) -> None:
    assert wrong_fields(pb.SearchRequest(**{"query": "q", "collection": COLLECTION, **fields})) == named


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (pb.Document(id="a", text="text", metadata_json='{"n": 1}'), []),
        (pb.Document(text="text"), ["documents[7].id"]),
        (pb.Document(id="x" * (MAX_ID_BYTES + 1), text=" "), ["documents[7].id", "documents[7].text"]),
        (pb.Document(id="a", text="text", metadata_json="[]"), ["documents[7].metadata_json"]),
    ],
)
def test_what_is_wrong_with_a_document_of_an_upsert_is_kept_beside_it(document: pb.Document, named: list[str]) -> None:
    pending = pending_document(document, "documents[7]", LIMITS)
    assert (pending.document.id, pending.document.text) == (document.id, document.text)
    violations = pending.error.violations if isinstance(pending.error, InvalidFields) else []
    assert [field for field, _ in violations] == named
