"""The upsert stream as the command line runs it, against a gateway that answers as the test says."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count

import grpc
import pytest

from winnow.retrieval.v1 import retrieval_pb2 as pb
from winnow.retrieval.v1 import retrieval_pb2_grpc as rpc
from winnow_cli.errors import CommandError
from winnow_cli.ingest import InputError, StalledError, upsert_documents

Upsert = Callable[[Iterator[pb.UpsertDocumentsRequest]], Iterator[pb.UpsertDocumentsResponse]]


@contextmanager
def gateway(upsert: Upsert) -> Iterator[rpc.RetrievalServiceStub]:
    class Service(rpc.RetrievalServiceServicer):
        def UpsertDocuments(  # noqa: N802
            self, request_iterator: Iterator[pb.UpsertDocumentsRequest], context: grpc.ServicerContext
        ) -> Iterator[pb.UpsertDocumentsResponse]:
            yield from upsert(request_iterator)

    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    rpc.add_RetrievalServiceServicer_to_server(Service(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
            yield rpc.RetrievalServiceStub(channel)
    finally:
        server.stop(0).wait()


def created(request: pb.UpsertDocumentsRequest) -> pb.UpsertDocumentsResponse:
    results = (pb.UpsertResult(id=d.id, outcome=pb.UPSERT_OUTCOME_CREATED) for d in request.documents)
    return pb.UpsertDocumentsResponse(results=results)


def test_messages_are_bounded_in_documents_and_bytes() -> None:
    seen: list[pb.UpsertDocumentsRequest] = []

    def upsert(requests: Iterator[pb.UpsertDocumentsRequest]) -> Iterator[pb.UpsertDocumentsResponse]:
        for request in requests:
            seen.append(request)
            yield created(request)

    texts = ["x"] * 70 + ["y" * (600 << 10)] * 3 + ["z" * (5 << 20)] + ["x"]
    with gateway(upsert) as stub:
        report = upsert_documents(stub, "c", (pb.Document(id=str(n), text=text) for n, text in enumerate(texts)))
    assert report.outcomes["created"] == len(texts)
    assert [document.text for request in seen for document in request.documents] == texts
    assert all(len(request.documents) <= 64 for request in seen)
    assert all(request.ByteSize() <= (1 << 20) + 1024 or len(request.documents) == 1 for request in seen)
    assert [request.collection for request in seen] == ["c", *[""] * (len(seen) - 1)]


def test_no_more_is_read_than_the_gateway_takes() -> None:
    """A million documents, of which the gateway reads one message: the rest is never even made."""
    made = count()

    def documents() -> Iterator[pb.Document]:
        for number in range(1_000_000):
            next(made)
            yield pb.Document(id=str(number), text="x" * 10_000)

    def upsert(requests: Iterator[pb.UpsertDocumentsRequest]) -> Iterator[pb.UpsertDocumentsResponse]:
        yield created(next(requests))
        raise RuntimeError("that is all")

    with gateway(upsert) as stub, pytest.raises(grpc.RpcError):
        upsert_documents(stub, "c", documents())
    assert next(made) < 100_000


@pytest.mark.parametrize("answers", [0, 1])
def test_a_gateway_that_stops_answering_is_given_up(answers: int) -> None:
    released = threading.Event()

    def upsert(requests: Iterator[pb.UpsertDocumentsRequest]) -> Iterator[pb.UpsertDocumentsResponse]:
        for _ in range(answers):
            yield created(next(requests))
        released.wait(60)

    with gateway(upsert) as stub:
        try:
            with pytest.raises(StalledError, match=r"DEADLINE_EXCEEDED.* 1 s"):
                upsert_documents(stub, "c", (pb.Document(id=str(n), text="x") for n in range(500)), timeout=1)
        finally:
            released.set()


def test_a_stream_that_makes_progress_is_not_cut_however_long_it_takes() -> None:
    pause = threading.Event()

    def upsert(requests: Iterator[pb.UpsertDocumentsRequest]) -> Iterator[pb.UpsertDocumentsResponse]:
        for request in requests:
            pause.wait(0.5)  # ten times: longer in all than the timeout
            yield created(request)

    with gateway(upsert) as stub:
        report = upsert_documents(stub, "c", (pb.Document(id=str(n), text="x") for n in range(10)), batch=1, timeout=4)
    assert report.outcomes["created"] == 10


def test_a_slow_source_is_waited_for() -> None:
    """The gateway owes nothing while the next document is not there yet."""
    pause = threading.Event()

    def documents() -> Iterator[pb.Document]:
        pause.wait(3)
        yield pb.Document(id="a", text="x")

    with gateway(lambda requests: map(created, requests)) as stub:
        report = upsert_documents(stub, "c", documents(), timeout=2)
    assert report.outcomes["created"] == 1


def test_what_came_before_a_bad_line_is_stored_and_reported() -> None:
    def documents() -> Iterator[pb.Document]:
        yield from (pb.Document(id=str(n), text="x") for n in range(100))
        raise CommandError("line 101: is not JSON")

    with gateway(lambda requests: map(created, requests)) as stub, pytest.raises(InputError, match="line 101") as error:
        upsert_documents(stub, "c", documents())
    assert error.value.report.outcomes["created"] == 100


def test_each_failure_is_counted_whatever_its_id() -> None:
    def upsert(requests: Iterator[pb.UpsertDocumentsRequest]) -> Iterator[pb.UpsertDocumentsResponse]:
        for request in requests:
            failed = [pb.UpsertResult(id=d.id, error={"code": 3, "message": "too long"}) for d in request.documents]
            yield pb.UpsertDocumentsResponse(results=failed)

    with gateway(upsert) as stub:
        report = upsert_documents(stub, "c", [pb.Document(id="same", text="x")] * 1500)
    assert report.failed == 1500
    assert len(report.errors) == 1000
    assert report.errors[0] == ("same", "too long")
