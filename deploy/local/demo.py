"""`make demo`: indexes and searches the documentation of the standard library."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deploy.local.corpus import Entry, standard_library
from winnow.retrieval.v1 import retrieval_pb2 as pb
from winnow.retrieval.v1 import retrieval_pb2_grpc
from winnow_cli.ingest import IngestReport, upsert_documents
from winnow_cli.render import print_search

COLLECTION = "python-docs"
CANDIDATES = 50
TOP_N = 3


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the names that answer it, written before any model was tried on them."""

    question: str
    answers: frozenset[str]


def questions() -> list[Question]:
    """The ten questions of the demo."""
    lines = (Path(__file__).parent / "questions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Question(row["question"], frozenset(row["answers"])) for row in rows]


def index_documentation(
    stub: retrieval_pb2_grpc.RetrievalServiceStub, entries: list[Entry], console: Console
) -> IngestReport:
    """Indexes the entries into a new collection, with a progress bar."""
    stub.CreateCollection(pb.CreateCollectionRequest(name=COLLECTION), timeout=30)
    columns = (TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("indexing", total=len(entries))
        documents = (pb.Document(id=e.name, text=e.text, metadata_json=e.metadata_json) for e in entries)
        return upsert_documents(stub, COLLECTION, documents, on_progress=lambda n: progress.advance(task, n))


def search(stub: retrieval_pb2_grpc.RetrievalServiceStub, query: str, **fields: int) -> pb.SearchResponse:
    """Searches the collection."""
    request = pb.SearchRequest(
        query=query,
        collection=pb.CollectionSource(name=COLLECTION),
        candidates=CANDIDATES,
        top_n=fields.get("top_n", TOP_N),
        return_metadata=False,
    )
    return stub.Search(request, timeout=60)


def run_demo(gateway: str, console: Console) -> int:
    """Indexes, searches, and shows the cache. Returns how many questions found their answer in the top three."""
    entries = standard_library()
    console.print(f"{len(entries)} docstrings of this Python's standard library", highlight=False)
    with grpc.insecure_channel(gateway, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        started = time.perf_counter()
        report = index_documentation(stub, entries, console)
        seconds = time.perf_counter() - started
        console.print(f"{report}, {len(entries) / seconds:.0f} per second\n", highlight=False)
        found = 0
        for question in questions():
            response = search(stub, question.question)
            right = any(hit.id in question.answers for hit in response.hits)
            found += right
            print_search(console, question.question, response, question.answers)
            if not right:
                console.print(f"no right answer; expected {' or '.join(sorted(question.answers))}", style="yellow")
            console.print()
        again = questions()[0].question
        console.print("the first question again, with its vector and scores from the cache", style="bold")
        print_search(console, again, search(stub, again), questions()[0].answers)
    return found
