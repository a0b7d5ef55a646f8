"""The collection of the rows: made, filled while faults happen, and counted."""

import threading
from types import TracebackType
from typing import Self

import grpc

from bench.reliability.calls import COLLECTION, RETRIES, options
from bench.reliability.certificates import credentials
from bench.reliability.fleet import Fleet
from bench.texts import Writer
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc
from winnow_cli.ingest import upsert_documents

_GROUP = 10  # documents of a stream
_PAUSE_S = 0.02
_SECONDS = 60.0


def stub(fleet: Fleet) -> retrieval_pb2_grpc.RetrievalServiceStub:
    """The service of all gateways, with the retries of any good client."""
    target, how = fleet.target("gateway"), options(RETRIES, fleet.tls)
    secure = fleet.tls and grpc.secure_channel(target, credentials(fleet.tls), how)
    return retrieval_pb2_grpc.RetrievalServiceStub(secure or grpc.insecure_channel(target, how))


def fill(fleet: Fleet, count: int = 200, words: int = 15) -> None:
    """Makes the collection, with `count` documents."""
    service = stub(fleet)
    service.CreateCollection(retrieval_pb2.CreateCollectionRequest(name=COLLECTION), timeout=_SECONDS)
    report = upsert_documents(service, COLLECTION, [_document(number, words) for number in range(count)], timeout=60)
    if report.failed:
        raise RuntimeError(f"the collection could not be filled: {report.errors[0][1]}")


class Upserts:
    """Upserts new documents, one short stream after another, on a thread until the block ends."""

    def __init__(self, fleet: Fleet, first: int = 1_000_000) -> None:
        self._service, self._first = stub(fleet), first
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upserts", daemon=True)
        self.acknowledged = 0
        self.failed = 0
        """Streams that broke although the channel retries, or documents that were refused; they are sent again."""
        self.error = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def lost(self) -> int:
        """Acknowledged documents that cannot be read."""
        numbers = range(self._first, self._first + self.acknowledged)
        lost = 0
        for start in range(0, len(numbers), 500):
            ids = [f"d{number}" for number in numbers[start : start + 500]]
            request = retrieval_pb2.GetDocumentsRequest(collection=COLLECTION, ids=ids)
            results = self._service.GetDocuments(request, timeout=_SECONDS).results
            lost += sum(result.WhichOneof("outcome") != "document" for result in results)
        return lost

    def doubled(self, before: int) -> int:
        """Documents that the collection has more than those `before` and those acknowledged."""
        request = retrieval_pb2.GetCollectionRequest(name=COLLECTION)
        found = self._service.GetCollection(request, timeout=_SECONDS).collection.document_count
        return int(found) - before - self.acknowledged

    def _run(self) -> None:
        documents: list[retrieval_pb2.Document] = []
        while documents or not self._ended.wait(_PAUSE_S):
            first = self._first + self.acknowledged
            documents = documents or [_document(number, 15) for number in range(first, first + _GROUP)]
            if self._stored(documents):
                self.acknowledged += len(documents)
                documents = []

    def _stored(self, documents: list[retrieval_pb2.Document]) -> bool:
        """Whether all of them were acknowledged."""
        try:
            report = upsert_documents(self._service, COLLECTION, documents, timeout=_SECONDS)
        except grpc.RpcError as error:
            self.failed += 1
            self.error = f"{error.code().name}: {error.details()}"
            return False
        self.failed += report.failed
        self.error = report.errors[0][1] if report.errors else self.error
        return not report.failed


def _document(number: int, words: int) -> retrieval_pb2.Document:
    return retrieval_pb2.Document(id=f"d{number}", text=f"{number} {Writer(number).of_words(words)}")
