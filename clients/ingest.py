"""Sends documents into a collection and waits until each one is answered."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from winnow.retrieval.v1 import retrieval_pb2 as pb
from winnow.retrieval.v1 import retrieval_pb2_grpc


@dataclass(slots=True)
class IngestReport:
    """What became of the documents: how many of each outcome, and the errors by document id."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """For people."""
        return ", ".join(f"{count} {name}" for name, count in self.outcomes.most_common()) or "nothing to do"


def upsert_documents(
    stub: retrieval_pb2_grpc.RetrievalServiceStub,
    collection: str,
    documents: Iterable[pb.Document],
    *,
    batch: int = 64,
    on_progress: Callable[[int], None] = lambda answered: None,
    metadata: tuple[tuple[str, str], ...] = (),
) -> IngestReport:
    """Upsert documents through one stream, `batch` a message; `on_progress` hears how many more were answered.

    A stream that breaks raises grpc.RpcError; sending everything again resumes it, since unchanged documents cost
    nothing.
    """
    report = IngestReport()
    for response in stub.UpsertDocuments(_requests(collection, documents, batch), metadata=metadata):
        for result in response.results:
            if result.HasField("error"):
                report.outcomes["failed"] += 1
                report.errors[result.id] = result.error.message
            else:
                report.outcomes[pb.UpsertOutcome.Name(result.outcome).removeprefix("UPSERT_OUTCOME_").lower()] += 1
        on_progress(len(response.results))
    return report


def _requests(collection: str, documents: Iterable[pb.Document], batch: int) -> Iterator[pb.UpsertDocumentsRequest]:
    iterator = iter(documents)
    yield pb.UpsertDocumentsRequest(collection=collection, documents=list(islice(iterator, batch)))
    while chunk := list(islice(iterator, batch)):
        yield pb.UpsertDocumentsRequest(documents=chunk)
