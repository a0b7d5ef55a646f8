"""Batch invariance: of how many queries the best ten documents change with what is computed beside a text.

Products and attention add in an order that depends on the shape of the step, so a text's numbers differ in their last
digits from step to step. Here every text is computed alone, and all of them together in the steps that the scheduler
packs of mixed requests; the rankings are then compared. So are those of each further number format with the first's.
"""

import argparse
import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from rich.progress import Progress
from rich.table import Table

from bench import checkpoints, compare, metrics, report
from bench.machine import ROOT
from bench.quality import QuestionSet
from bench.report import Report
from bench.subjects.winnow import settings
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import EngineError
from services.engine.types import EmbedItem, Failure, InputType, RerankItem

T = TypeVar("T")
Numbers = npt.NDArray[np.float64]

_HELD_OUT = ROOT / "training" / "heldout" / "debian.jsonl"
_REQUEST = 32  # documents of a request in the mixed run
_TOGETHER = 8  # rerank requests in flight


@dataclass(frozen=True, slots=True)
class Size:
    """How much is computed. `documents` of None is all; `candidates` of a query are reranked."""

    queries: int
    documents: int | None
    candidates: int


# Of the nano pair all documents; of the 0.6B shape what two cores compute in some minutes.
_NANO, _LARGE = Size(300, None, 20), Size(20, 200, 20)


@dataclass(frozen=True, slots=True)
class Texts:
    """What is ranked for what."""

    queries: Sequence[str]
    documents: Sequence[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench invariance`."""
    parser.add_argument("files", type=Path, nargs="*", help='JSON lines {"query": …, "doc": …} (default: debian.jsonl)')
    parser.add_argument(
        "--models", default="nano,0.6b", help="with commas: nano, 0.6b (random weights) or 0.6b-4layers (nano,0.6b)"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the CPU, and CUDA too")
    compare.add_formats(parser)
    parser.set_defaults(formats=["float32", "bfloat16"])
    parser.add_argument("--queries", type=int, help="evenly spread over the file (default 300; 20 of another model)")
    parser.add_argument("--documents", type=int, help="the queries' own come first (default all; 200)")
    parser.add_argument("--candidates", type=int, help="documents of a query that are reranked (default 20)")
    parser.add_argument("--tokenizer", type=Path, help="of a random model: a folder with tokenizer.json (default nano)")
    parser.add_argument("--cache", type=Path, default=checkpoints.CACHE, help="where random models are kept")
    report.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Count every model, file, device and number format, print the table."""
    devices = _devices(arguments)
    output = Report(arguments, "invariance", devices[-1])
    table = Table(
        title="queries whose 10 best documents change between alone and in batches, or between formats",
        title_justify="left",
    )
    for name in (
        "model",
        "texts",
        "device",
        "format",
        "by",
        "queries",
        "order changes",
        "members change",
        "difference",
    ):
        table.add_column(name, justify="left" if name in ("model", "texts", "device", "format", "by") else "right")
    try:
        for file in arguments.files or [_HELD_OUT]:
            for name in arguments.models.split(","):
                size = _size(arguments, name)
                texts = read(file, size)
                chosen = checkpoints.named(name, tokenizer=arguments.tokenizer, cache=arguments.cache)
                embed, rerank = checkpoints.prepare(chosen, "embed"), checkpoints.prepare(chosen, "rerank")
                for device in devices:
                    first: Scores | None = None
                    for format in arguments.formats:
                        with output.progress() as progress:
                            candidates = min(size.candidates, len(texts.documents))
                            work = _measure(texts, embed, rerank, device, format, candidates, first, progress)
                            scores = asyncio.run(work)
                        found = scores.changes()
                        if first:
                            found |= scores.changes_from(first, arguments.formats[0])
                        first = first or scores
                        for by, changes in found.items():
                            line = {"bench": "invariance", "model": name, "texts": file.stem, "device": device}
                            output.add(line | {"format": format, "by": by} | asdict(changes))
                            table.add_row(
                                name, file.stem, device, format, by, str(changes.queries), str(changes.order),
                                str(changes.members), f"{changes.difference:.1g}",
                            )  # fmt: skip
    except (checkpoints.ModelMissingError, EngineError, OSError, ValueError) as error:
        print(f"bench invariance: {error}", file=sys.stderr)
        return 1
    output.finish(table)
    return 0


def read(file: Path, size: Size) -> Texts:
    """The queries, spread evenly over the file, and the documents: those that are right for a query come first."""
    found = QuestionSet.read(file, size.queries)
    right = [found.documents[at] for at in found.right]
    documents = list(dict.fromkeys([*right, *found.documents]))
    return Texts(found.queries, documents[: size.documents])


@dataclass(frozen=True, slots=True)
class Scores:
    """By vectors, and of each query's `best` documents by reranking: of texts alone and in batches."""

    embed: tuple[Numbers, Numbers]
    rerank: tuple[Numbers, Numbers]
    best: npt.NDArray[np.int64]

    def changes(self) -> dict[str, metrics.Changes]:
        """Between alone and in batches."""
        return {"embed": metrics.changes(*self.embed), "rerank": metrics.changes(*self.rerank)}

    def changes_from(self, first: "Scores", name: str) -> dict[str, metrics.Changes]:
        """Between the format of that name and this one, both alone."""
        return {
            f"embed, from {name}": metrics.changes(first.embed[0], self.embed[0]),
            f"rerank, from {name}": metrics.changes(first.rerank[0], self.rerank[0]),
        }


async def _measure(
    texts: Texts, embed: Path, rerank: Path, device: str, format: str, candidates: int, first: Scores | None,
    progress: Progress,
) -> Scores:  # fmt: skip
    """Reranks what is best by vectors, those of the `first` format if there is one."""
    embedder = EmbedEngine.load(settings(embed, device, format=format))
    _start(embedder)
    try:
        alone = await _similarities(embedder, texts, 1, 1, progress)
        together = await _similarities(embedder, texts, _REQUEST, len(texts.queries) + len(texts.documents), progress)
    finally:
        embedder.close()
    cosines = alone, together
    best = first.best if first else metrics.best(alone, candidates)
    reranker = RerankEngine.load(settings(rerank, device, format=format))
    _start(reranker)
    try:
        alone = await _scores(reranker, texts, best, 1, 1, progress)
        together = await _scores(reranker, texts, best, candidates, _TOGETHER, progress)
    finally:
        reranker.close()
    return Scores(cosines, (alone, together), best)


def _start(engine: EmbedEngine | RerankEngine) -> None:
    """Waits for what a CUDA device prepares in the background: kernels that change halfway are not what is counted."""
    engine.start()
    for thread in threading.enumerate():
        if thread.name == "optimize":
            thread.join()


async def _similarities(engine: EmbedEngine, texts: Texts, documents: int, at_once: int, progress: Progress) -> Numbers:
    """Cosines, queries x documents. Each query is a request, so are so many `documents`; `at_once` of them wait."""
    requests: list[tuple[InputType, Sequence[str]]] = [(InputType.QUERY, [query]) for query in texts.queries]
    requests += [(InputType.DOCUMENT, part) for part in _parts(texts.documents, documents)]
    order = np.random.default_rng(0).permutation(len(requests))  # so that steps hold both

    async def one(place: int) -> tuple[int, Numbers]:
        kind, part = requests[place]
        result = await engine.embed(part, input_type=kind)
        return place, np.stack([_sound(item, EmbedItem).vector for item in result.items]).astype(np.float64)

    done = dict(
        await _all([partial(one, int(place)) for place in order], at_once, f"embed, {at_once} at once", progress)
    )
    rows = np.concatenate([done[place] for place in range(len(requests))])
    cosines: Numbers = rows[: len(texts.queries)] @ rows[len(texts.queries) :].T
    return cosines


async def _scores(
    engine: RerankEngine, texts: Texts, best: npt.NDArray[np.int64], documents: int, at_once: int, progress: Progress
) -> Numbers:
    """Logits, queries x candidates. So many `documents` of a query are a request; `at_once` requests wait."""

    async def one(query: str, part: Sequence[int]) -> list[float]:
        result = await engine.rerank(query, [texts.documents[at] for at in part])
        return [_sound(item, RerankItem).logit for item in result.items]

    calls = [
        partial(one, query, part)
        for query, row in zip(texts.queries, best, strict=True)
        for part in _parts(row.tolist(), documents)
    ]
    logits = await _all(calls, at_once, f"rerank, {at_once} at once", progress)
    return np.array([logit for part in logits for logit in part]).reshape(best.shape)


async def _all(calls: Sequence[Callable[[], Awaitable[T]]], at_once: int, label: str, progress: Progress) -> list[T]:
    """What all calls give, in order, so many of them at once."""
    task = progress.add_task(label, total=len(calls))
    found: list[T] = []
    for part in _parts(calls, at_once):
        found += await asyncio.gather(*(call() for call in part))
        progress.advance(task, len(part))
    progress.remove_task(task)
    return found


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _sound(item: T | Failure, kind: type[T]) -> T:
    if isinstance(item, kind):
        return item
    assert isinstance(item, Failure)
    raise item.error


def _devices(arguments: argparse.Namespace) -> list[str]:
    device = compare.device_of(arguments)
    return ["cpu", "cuda"] if arguments.device == "auto" and device == "cuda" else [device]


def _size(arguments: argparse.Namespace, model: str) -> Size:
    size = _NANO if model == "nano" else _LARGE
    return Size(
        arguments.queries or size.queries,
        arguments.documents or size.documents,
        arguments.candidates or size.candidates,
    )
