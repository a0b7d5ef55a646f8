"""`winnow`: search, embed, rerank and fill collections from the command line, through a running gateway."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clients.ingest import upsert_documents
from clients.render import print_search
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc


class Session:
    """A channel to the gateway, the caller's options, and where answers are printed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.console = Console(highlight=False)
        self.channel = _channel(options)
        # Metadata on a call works over plaintext as well, which call credentials refuse.
        self.metadata = (("authorization", f"Bearer {options.token}"),) if options.token else ()
        self.call = {"timeout": options.timeout, "metadata": self.metadata}

    def answer(self, message: Message, show: Callable[[], None]) -> None:
        """Print an answer: as JSON where asked, else as `show` does."""
        if self.options.json:
            print(MessageToJson(message))
        else:
            show()


def _channel(options: argparse.Namespace) -> grpc.Channel:
    limits = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    if options.tls_ca:
        credentials = grpc.ssl_channel_credentials(Path(options.tls_ca).read_bytes())
        return grpc.secure_channel(options.address, credentials, options=limits)
    return grpc.insecure_channel(options.address, options=limits)


def search(session: Session) -> None:
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
        request.documents.documents.extend(retrieval_pb2.Document(id=text, text=text) for text in options.inline)
    else:
        request.collection.name = options.collection
        request.collection.filter = options.filter
    response = retrieval_pb2_grpc.RetrievalServiceStub(session.channel).Search(request, **session.call)
    session.answer(response, lambda: print_search(session.console, options.query, response))


def embed(session: Session) -> None:
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
                session.console.print(f"{text}: {result.error.message}", style="red", markup=False)
                continue
            vector = np.frombuffer(result.embedding.data, "<f4")
            head = " ".join(f"{value:+.4f}" for value in vector[:6])
            session.console.print(f"{head} … ({vector.size} dimensions, {result.tokens} tokens)  {text}", markup=False)

    session.answer(response, show)


def rerank(session: Session) -> None:
    """Score documents against a query."""
    options = session.options
    request = rerank_pb2.RerankRequest(
        query=options.query, documents=options.documents, instruction=options.instruction, return_documents=True
    )
    response = rerank_pb2_grpc.RerankServiceStub(session.channel).Rerank(request, **session.call)

    def show() -> None:
        for result in response.results:
            session.console.print(f"{result.score:.4f}  {result.document}", markup=False)

    session.answer(response, show)


def ingest(session: Session) -> None:
    """Fill a collection from a JSONL file; create it where it does not exist."""
    options, stub = session.options, retrieval_pb2_grpc.RetrievalServiceStub(session.channel)
    try:
        stub.CreateCollection(retrieval_pb2.CreateCollectionRequest(name=options.collection), **session.call)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise
    documents = list(_read_documents(options.file))
    columns = (TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=session.console) as progress:
        task = progress.add_task("indexing", total=len(documents))
        report = upsert_documents(
            stub,
            options.collection,
            documents,
            on_progress=lambda answered: progress.advance(task, answered),
            metadata=session.metadata,
        )
    session.console.print(str(report))
    for document, message in report.errors.items():
        session.console.print(f"{document}: {message}", style="red", markup=False)


def _read_documents(path: str) -> Iterator[retrieval_pb2.Document]:
    with sys.stdin if path == "-" else Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                yield retrieval_pb2.Document(
                    id=str(row["id"]), text=row["text"], metadata_json=json.dumps(row.get("metadata", {}))
                )
            except (ValueError, KeyError, TypeError) as error:
                raise SystemExit(f'{path}, line {number}: wants {{"id", "text", "metadata"?}}: {error}') from None


def collections(session: Session) -> None:
    """List the collections."""
    stub = retrieval_pb2_grpc.RetrievalServiceStub(session.channel)
    response = stub.ListCollections(retrieval_pb2.ListCollectionsRequest(page_size=1000), **session.call)

    def show() -> None:
        for item in response.collections:
            size = f"{item.document_count} documents, {item.dimensions} dimensions, {item.shards} shards"
            session.console.print(f"{item.name}: {size}, {item.model.name}")

    session.answer(response, show)


def drop(session: Session) -> None:
    """Remove a collection with all it holds."""
    stub = retrieval_pb2_grpc.RetrievalServiceStub(session.channel)
    stub.DeleteCollection(retrieval_pb2.DeleteCollectionRequest(name=session.options.collection), **session.call)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="winnow", description=__doc__)
    parser.add_argument("--address", default=os.environ.get("WINNOW_ADDRESS", "localhost:50050"), help="the gateway")
    parser.add_argument("--token", default=os.environ.get("WINNOW_TOKEN"), help="bearer token, where it wants one")
    parser.add_argument("--tls-ca", metavar="FILE", help="speak TLS and trust this certificate authority")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds, for each call")
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[[Session], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.set_defaults(run=run)
        return added

    one = command("search", search)
    one.add_argument("query")
    source = one.add_mutually_exclusive_group(required=True)
    source.add_argument("--collection", help="search this collection")
    source.add_argument("--inline", nargs="+", metavar="TEXT", help="search these texts")
    one.add_argument("--filter", default="", help='on metadata, as in: .kind == "function"')
    one.add_argument("--instruction", help="the task, in one English sentence")
    one.add_argument("--candidates", type=int, help="documents handed to the reranker (50)")
    one.add_argument("--top-n", type=int, help="hits to show (10)")
    one.add_argument("--no-rerank", action="store_true", help="first stage only")
    one = command("embed", embed)
    one.add_argument("texts", nargs="+")
    one.add_argument("--query", action="store_true", help="embed as queries, not as documents")
    one.add_argument("--instruction", help="the task, in one English sentence")
    one.add_argument("--dimensions", type=int)
    one = command("rerank", rerank)
    one.add_argument("query")
    one.add_argument("documents", nargs="+")
    one.add_argument("--instruction", help="what makes a document relevant")
    one = command("ingest", ingest)
    one.add_argument("collection")
    one.add_argument("file", help='JSONL: {"id": …, "text": …, "metadata": {…}}; - for standard input')
    command("collections", collections)
    command("drop", drop).add_argument("collection")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Errors of the service are printed as the service words them."""
    options = _parser().parse_args(arguments)
    session = Session(options)
    try:
        options.run(session)
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    finally:
        session.channel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
