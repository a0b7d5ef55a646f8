"""Ranking quality on a test set, with running services: BM25, the first stage at several widths, reranking.

The test set is a file of JSON lines {"query": …, "doc": …}. The document of a row is relevant for the query of this row
only.
"""

import argparse
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
from rich.progress import Progress
from rich.table import Table

from bench import metrics, report, services
from bench.report import Report
from deploy.local.process import StartError
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2 as pb
from winnow.retrieval.v1 import retrieval_pb2_grpc
from winnow_cli.ingest import upsert_documents

_CANDIDATES = 50
_NARROWEST = (64, 128)  # and half the model's width, and all of it
_CALL_SECONDS = 900.0
_QUANTIZATION = {"int8": pb.QUANTIZATION_INT8, "none": pb.QUANTIZATION_NONE, "binary": pb.QUANTIZATION_BINARY}

Ranks = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """`right[i]` is the position of query i's document among the distinct `documents`."""

    queries: list[str]
    documents: list[str]
    right: npt.NDArray[np.int64]

    @classmethod
    def read(cls, file: Path, queries: int | None) -> "QuestionSet":
        """Reads all documents, and all queries or the given number of them, evenly distributed. Raises ValueError."""
        rows: list[tuple[str, str]] = []
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows.append((str(row["query"]), str(row["doc"])))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f'{file}:{number}: not a row {{"query": …, "doc": …}}') from None
        if not rows:
            raise ValueError(f"{file}: no rows")
        documents = list(dict.fromkeys(document for _, document in rows))
        places = {document: at for at, document in enumerate(documents)}
        step = max(1.0, len(rows) / queries) if queries else 1.0
        chosen = [rows[int(at * step)] for at in range(int(len(rows) / step))]
        right = np.array([places[document] for _, document in chosen])
        return cls([query for query, _ in chosen], documents, right)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench quality`."""
    parser.add_argument("file", type=Path, help='JSON lines {"query": …, "doc": …}')
    services.add_arguments(parser)
    parser.add_argument(
        "--widths", help="of the first stage (default: 64, 128, half and all of the model's, as far as it has them)"
    )
    parser.add_argument("--quantization", choices=_QUANTIZATION, default="int8", help="of the index (default int8)")
    parser.add_argument("--queries", type=int, help="number of queries, evenly distributed (default: all)")
    parser.add_argument("--concurrency", type=int, default=4, help="searches in flight (default 4)")
    parser.add_argument("--no-rerank", action="store_true", help="BM25 and the first stage only")
    report.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measures all stages and prints the table."""
    output = Report(arguments, f"quality-{arguments.file.stem}")
    try:
        test_set = QuestionSet.read(arguments.file, arguments.queries)
        with services.gateway(arguments, output) as address:
            _measure(arguments, test_set, address, output)
    except (OSError, ValueError, StartError) as error:
        print(f"bench quality: {error}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"bench quality: {_told(error)}", file=sys.stderr)
        return 1
    return 0


def _told(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)


def _measure(arguments: argparse.Namespace, test_set: QuestionSet, address: str, output: Report) -> None:
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),
    ]
    table = Table(title=f"{arguments.file.name}: {len(test_set.queries)} queries, {len(test_set.documents)} documents")
    for name in ("stage", "width", "nDCG@10", "MRR@10", "Recall@50"):
        table.add_column(name, justify="left" if name == "stage" else "right")

    def add(stage: str, width: int, ranks: Ranks, label: str = "") -> None:
        found = metrics.summary(ranks)
        for metric, value in found.items():
            output.add({"bench": "quality", "stage": stage, "width": width, "metric": metric, "value": round(value, 4)})
        shown = "" if stage == "bm25" else str(width)
        table.add_row(label or stage, shown, *(f"{value:.3f}" for value in found.values()))

    with grpc.insecure_channel(address, options=options) as channel, output.progress() as progress:
        searcher = Searcher(channel, test_set, arguments.concurrency, progress)
        widths = _widths(arguments.widths, *searcher.widths())
        add("bm25", 0, bm25(test_set))
        for width in widths:
            with searcher.collection(width, _QUANTIZATION[arguments.quantization]) as name:
                ranks, _ = searcher.search(f"first stage, {width} wide", name, pb.RERANK_POLICY_SKIP, None)
                add("first", width, ranks)
                if width == max(widths) and not arguments.no_rerank:
                    ranks, _ = searcher.search("rerank", name, pb.RERANK_POLICY_REQUIRED, 0.0)
                    add("rerank", width, ranks)
                    # The scores are cached now, so only the blend is computed.
                    ranks, weight = searcher.search("blend", name, pb.RERANK_POLICY_REQUIRED, None)
                    add("blend", width, ranks, f"rerank, retrieval_weight {weight:.2g}")
    output.finish(table)


def bm25(test_set: QuestionSet) -> Ranks:
    """Ranks by BM25 (bm25s: Lucene's variant, English stop words, no stemming)."""
    import bm25s

    index = bm25s.BM25(method="lucene")
    index.index(bm25s.tokenize(test_set.documents, stopwords="en", show_progress=False), show_progress=False)
    ranks = []
    for query, right in zip(test_set.queries, test_set.right, strict=True):
        words = bm25s.tokenize(query, stopwords="en", show_progress=False, return_ids=False)[0]
        known = [word for word in words if word in index.vocab_dict]
        scores = index.get_scores(known) if known else np.zeros(len(test_set.documents))
        ranks.append(metrics.ranks_of(scores[None, :], np.array([right]))[0])
    return np.array(ranks)


class Searcher:
    """The test set in collections of one gateway."""

    def __init__(self, channel: grpc.Channel, test_set: QuestionSet, concurrency: int, progress: Progress) -> None:
        self._embed = embed_pb2_grpc.EmbedServiceStub(channel)
        self._retrieval = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        self._test_set, self._concurrency, self._progress = test_set, concurrency, progress

    def widths(self) -> tuple[int, int]:
        """The fewest and the most dimensions of the model's vectors."""
        model = self._embed.GetModel(embed_pb2.GetModelRequest(), timeout=_CALL_SECONDS)
        return model.min_dimensions, model.dimensions

    @contextmanager
    def collection(self, width: int, quantization: pb.Quantization) -> Iterator[str]:
        """A collection of the given width with all documents, by position as id. Deleted at the end of the context."""
        name = f"bench-quality-{width}-{uuid.uuid4().hex[:8]}"
        self._retrieval.CreateCollection(
            pb.CreateCollectionRequest(name=name, dimensions=width, quantization=quantization), timeout=_CALL_SECONDS
        )
        try:
            documents = [pb.Document(id=str(at), text=text) for at, text in enumerate(self._test_set.documents)]
            with self._bar(f"indexing, {width} wide", len(documents)) as advance:
                ingested = upsert_documents(self._retrieval, name, documents, on_progress=advance)
            if ingested.failed:
                raise ValueError(f"{ingested.failed} documents failed: {ingested.errors[0][1]}")
            yield name
        finally:
            self._retrieval.DeleteCollection(pb.DeleteCollectionRequest(name=name), timeout=_CALL_SECONDS)

    def search(
        self, label: str, collection: str, rerank: pb.RerankPolicy, retrieval_weight: float | None
    ) -> tuple[Ranks, float]:
        """Rank of the relevant document of each query (after all documents if it is not found), and the weight."""
        queries, right = self._test_set.queries, self._test_set.right
        missing = len(self._test_set.documents) + 1

        def one(query: str) -> pb.SearchResponse:
            return self._retrieval.Search(
                pb.SearchRequest(
                    query=query, collection=pb.CollectionSource(name=collection), candidates=_CANDIDATES,
                    top_n=_CANDIDATES, rerank=rerank, retrieval_weight=retrieval_weight, return_text=False,
                    return_metadata=False,
                ),
                timeout=_CALL_SECONDS,
            )  # fmt: skip

        ranks, weight = [], 0.0
        with self._bar(label, len(queries)) as advance, ThreadPoolExecutor(self._concurrency) as pool:
            for response, target in zip(pool.map(one, queries), right, strict=True):
                ids = [hit.id for hit in response.hits]
                ranks.append(ids.index(str(target)) + 1 if str(target) in ids else missing)
                weight = response.retrieval_weight
                advance(1)
        return np.array(ranks), weight

    @contextmanager
    def _bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        task = self._progress.add_task(label, total=total)
        try:
            yield lambda count: self._progress.advance(task, count)
        finally:
            self._progress.remove_task(task)


def _widths(asked: str | None, least: int, native: int) -> Sequence[int]:
    if asked:
        return sorted({int(width) for width in asked.split(",")})
    return sorted({width for width in (*_NARROWEST, native // 2, native) if least <= width <= native})
