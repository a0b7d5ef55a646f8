"""The commands of `winnow`: each is one function of a Session and returns the exit status."""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc
from winnow_cli.connection import bearer, open_channel
from winnow_cli.ingest import IngestReport, InputError, upsert_documents
from winnow_cli.jsonl import read_documents
from winnow_cli.render import console, print_search, printable

_PAGE = 1000


class Session:
    """A channel to the gateway, the caller's options, and where answers are printed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.console = console()
        # Metadata on a call works over plaintext as well, which call credentials refuse.
        self.metadata = bearer(options.token)
        self.channel = open_channel(options.address, options.tls_ca)
        self.call: dict[str, Any] = {"timeout": options.timeout, "metadata": self.metadata}

    def answer(self, message: Message, show: Callable[[], None] = lambda: None) -> None:
        """Print an answer: as JSON with all its fields if asked to, else as `show` does."""
        if self.options.json:
            print(MessageToJson(message, always_print_fields_with_no_presence=True))
        else:
            show()

    def line(self, text: str, style: str | None = None) -> None:
        """Print one line, however long."""
        self.console.print(printable(text), style=style, soft_wrap=True)


def search(session: Session) -> int:
    """Retrieve, then rerank."""
    options = session.options
    request = retrieval_pb2.SearchRequest(
        query=options.query,
        instruction=options.instruction,
        candidates=options.candidates,
        top_n=options.top_n,
        rerank=retrieval_pb2.RERANK_POLICY_SKIP if options.no_rerank else retrieval_pb2.RERANK_POLICY_UNSPECIFIED,
    )
    if options.inline:
        request.documents.documents.extend(retrieval_pb2.Document(text=text) for text in options.inline)
    else:
        request.collection.name = options.collection
        request.collection.filter = options.filter or ""
    response = retrieval_pb2_grpc.RetrievalServiceStub(session.channel).Search(request, **session.call)
    session.answer(response, lambda: print_search(session.console, options.query, response))
    return 0


def embed(session: Session) -> int:
    """Turn texts into vectors."""
    options = session.options
    request = embed_pb2.EmbedRequest(
        texts=options.texts,
        input_type=embed_pb2.INPUT_TYPE_QUERY if options.query else embed_pb2.INPUT_TYPE_DOCUMENT,
        instruction=options.instruction,
        dimensions=options.dimensions,
    )
    response = embed_pb2_grpc.EmbedServiceStub(session.channel).Embed(request, **session.call)

    def show() -> None:
        for text, result in zip(options.texts, response.results, strict=True):
            if result.HasField("error"):
                session.line(f"{text}: {result.error.message}", style="red")
                continue
            vector = np.frombuffer(result.embedding.data, "<f4")
            head = " ".join(f"{value:+.4f}" for value in vector[:6])
            session.line(f"{head} … ({vector.size} dimensions, {result.tokens} tokens)  {text}")

    session.answer(response, show)
    return int(any(result.HasField("error") for result in response.results))


def rerank(session: Session) -> int:
    """Score documents against a query."""
    options = session.options
    request = rerank_pb2.RerankRequest(
        query=options.query, documents=options.documents, instruction=options.instruction, return_documents=True
    )
    response = rerank_pb2_grpc.RerankServiceStub(session.channel).Rerank(request, **session.call)

    def show() -> None:
        for result in response.results:
            session.line(f"{result.score:.4f}  {result.document}")
        for failure in response.errors:
            session.line(f"{options.documents[failure.index]}: {failure.error.message}", style="red")

    session.answer(response, show)
    return int(len(response.errors) > 0)


def ingest(session: Session) -> int:
    """Fill a collection from a JSONL file; create it if it does not exist."""
    options, stub = session.options, retrieval_pb2_grpc.RetrievalServiceStub(session.channel)
    # A file is checked before anything is sent; standard input can be read only once.
    total = sum(1 for _ in read_documents(options.file)) if Path(options.file).is_file() else None
    documents = read_documents(options.file)
    first = next(documents, None)  # whatever cannot be opened or begins badly leaves no empty collection behind
    try:
        stub.CreateCollection(retrieval_pb2.CreateCollectionRequest(name=options.collection), **session.call)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise
    failure: InputError | None = None
    columns = (TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    screen = console(stderr=True)
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:
        task = progress.add_task("indexing", total=total)
        try:
            report = upsert_documents(
                stub,
                options.collection,
                _chain(first, documents),
                on_progress=lambda answered: progress.advance(task, answered),
                metadata=session.metadata,
                timeout=options.timeout,
            )
        except InputError as error:
            report, failure = error.report, error
    _print_report(session, report)
    if failure is not None:
        raise failure
    return int(report.failed > 0)


def _chain(
    first: retrieval_pb2.Document | None, rest: Iterator[retrieval_pb2.Document]
) -> Iterator[retrieval_pb2.Document]:
    if first is not None:
        yield first
    yield from rest


def _print_report(session: Session, report: IngestReport) -> None:
    if session.options.json:
        errors = [{"id": document, "message": message} for document, message in report.errors]
        print(json.dumps({"outcomes": dict(report.outcomes), "errors": errors}, indent=2))
        return
    session.line(str(report))
    for document, message in report.errors:
        session.line(f"{document}: {message}", style="red")
    if report.failed > len(report.errors):
        session.line(f"and {report.failed - len(report.errors)} more failed", style="red")


def collections(session: Session) -> int:
    """List the collections."""
    stub = retrieval_pb2_grpc.RetrievalServiceStub(session.channel)
    listed, token = retrieval_pb2.ListCollectionsResponse(), ""
    while True:
        request = retrieval_pb2.ListCollectionsRequest(page_size=_PAGE, page_token=token)
        page = stub.ListCollections(request, **session.call)
        listed.collections.extend(page.collections)
        token = page.next_page_token
        if not token:
            break

    def show() -> None:
        for item in listed.collections:
            size = f"{item.document_count} documents, {item.dimensions} dimensions, {item.shards} shards"
            session.line(f"{item.name}: {size}, {item.model.name}")

    session.answer(listed, show)
    return 0


def drop(session: Session) -> int:
    """Remove a collection with all it holds."""
    stub = retrieval_pb2_grpc.RetrievalServiceStub(session.channel)
    session.answer(
        stub.DeleteCollection(retrieval_pb2.DeleteCollectionRequest(name=session.options.collection), **session.call)
    )
    return 0
