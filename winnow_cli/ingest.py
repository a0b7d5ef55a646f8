"""Sends documents into a collection and waits until each one is answered."""

import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc

from winnow.retrieval.v1 import retrieval_pb2 as pb
from winnow.retrieval.v1 import retrieval_pb2_grpc
from winnow_cli.errors import CommandError

# An answer, what broke the stream, or None for its end.
Answers: TypeAlias = "queue.Queue[pb.UpsertDocumentsResponse | Exception | None]"

_MESSAGE_BYTES = 1 << 20  # a message is closed when it would grow above this; a larger document travels alone
_KEPT_ERRORS = 1000
# A signal that comes just before a wait does not end it: it is noticed between two waits.
_LOOK_SECONDS = 1.0


@dataclass(slots=True)
class IngestReport:
    """What became of the documents: how many of each outcome, and the first thousand errors as (id, message)."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[str, str]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Documents that were not stored."""
        return self.outcomes["failed"]

    def add(self, result: pb.UpsertResult) -> None:
        """Count one answer."""
        if not result.HasField("error"):
            self.outcomes[pb.UpsertOutcome.Name(result.outcome).removeprefix("UPSERT_OUTCOME_").lower()] += 1
            return
        self.outcomes["failed"] += 1
        if len(self.errors) < _KEPT_ERRORS:
            self.errors.append((result.id, result.error.message))

    def __str__(self) -> str:
        """For people."""
        return ", ".join(f"{count} {name}" for name, count in self.outcomes.most_common()) or "nothing to do"


class StalledError(CommandError):
    """The gateway answered nothing for too long."""


class InputError(CommandError):
    """The documents could not be read to their end. `report`: what became of those before."""

    def __init__(self, message: str, report: IngestReport) -> None:
        super().__init__(message)
        self.report = report


def upsert_documents(
    stub: retrieval_pb2_grpc.RetrievalServiceStub,
    collection: str,
    documents: Iterable[pb.Document],
    *,
    batch: int = 64,
    on_progress: Callable[[int], None] = lambda answered: None,
    metadata: tuple[tuple[str, str], ...] = (),
    timeout: float | None = None,
) -> IngestReport:
    """Upsert documents through one stream, at most `batch` a message; `on_progress` hears how many more were answered.

    `documents` is read only as fast as the gateway takes it, so it may be larger than the memory. `timeout` is in
    seconds: how long the gateway may owe an answer without giving any; a stream that makes progress is never cut.

    Raises grpc.RpcError if the stream breaks, StalledError after `timeout`, InputError if `documents` raises: what
    came before is sent and answered first. Sending everything again resumes, since unchanged documents cost nothing.
    """
    report = IngestReport()
    sent = _Sent()
    call = stub.UpsertDocuments(sent.requests(collection, documents, batch), metadata=metadata)
    answers: Answers = queue.Queue()
    threading.Thread(target=_receive, args=(call, answers), name="ingest-answers", daemon=True).start()
    try:
        while (answer := _next(answers, sent, timeout)) is not None:
            if isinstance(answer, Exception):
                raise answer
            sent.answered += len(answer.results)
            for result in answer.results:
                report.add(result)
            on_progress(len(answer.results))
    finally:
        call.cancel()  # nothing if it has ended
    if sent.error is not None:
        raise InputError(str(sent.error), report) from sent.error
    return report


class _Sent:
    """Counts what was handed to the stream. `requests` runs on gRPC's thread, the rest on the caller's."""

    def __init__(self) -> None:
        self.documents = 0
        self.answered = 0
        self.complete = False
        self.error: Exception | None = None

    @property
    def owed(self) -> bool:
        """Whether the gateway owes an answer: for documents, or the end of the stream."""
        return self.complete or self.documents > self.answered

    def requests(
        self, collection: str, documents: Iterable[pb.Document], batch: int
    ) -> Iterator[pb.UpsertDocumentsRequest]:
        """Yield the messages. An exception of `documents` ends the stream in order and is kept in `error`."""
        request = pb.UpsertDocumentsRequest(collection=collection)
        size = 0
        try:
            for document in documents:
                if request.documents and (
                    len(request.documents) == batch or size + document.ByteSize() > _MESSAGE_BYTES
                ):
                    self.documents += len(request.documents)
                    yield request
                    request, size = pb.UpsertDocumentsRequest(), 0
                request.documents.append(document)
                size += document.ByteSize()
        except Exception as error:
            self.error = error
        self.documents += len(request.documents)
        self.complete = True
        yield request


def _receive(call: Iterable[pb.UpsertDocumentsResponse], answers: Answers) -> None:
    try:
        for answer in call:
            answers.put(answer)
    except grpc.RpcError as error:
        answers.put(error)
    else:
        answers.put(None)


def _next(answers: Answers, sent: _Sent, timeout: float | None) -> pb.UpsertDocumentsResponse | Exception | None:
    """Wait for the next answer; StalledError if one is owed for `timeout` seconds."""
    owed, since = sent.owed, time.monotonic()
    while True:
        left = math.inf if timeout is None else since + timeout - time.monotonic()
        try:
            return answers.get(timeout=min(_LOOK_SECONDS, max(0.0, left)))
        except queue.Empty:
            if left > 0:
                continue
            if owed and sent.owed:
                raise StalledError(f"DEADLINE_EXCEEDED: the gateway answered nothing for {timeout:g} s") from None
            owed, since = sent.owed, time.monotonic()
