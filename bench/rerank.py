"""Reranking throughput with the text lengths of MS MARCO: the same pairs and the same weights, side by side."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bench import checkpoints, compare
from bench.ceiling import ceiling, config_of, linear_flops
from bench.compare import Measurement, Numbers
from bench.report import Report, Row, table_of
from bench.subjects import Reranker
from bench.texts import Writer
from services.engine import host
from services.engine.errors import EngineError
from services.engine.models.qwen3.prompts import DEFAULT_INSTRUCTION, RERANK_BODY, RERANK_PREFIX, RERANK_SUFFIX

SUBJECTS = ("winnow", "recipe", "sentence-transformers")
# Documents per query → queries per run, by device.
CASES = {"10": {"cpu": 3, "cuda": 128}, "50": {"cpu": 1, "cuda": 32}, "100": {"cpu": 1, "cuda": 16}}
# Maximum difference between two subjects' probabilities.
_TOLERANCE = {"cpu": 1e-4, "cuda": 5e-2}

Requests = list[tuple[str, list[str]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench rerank`."""
    compare.add_arguments(parser, list(CASES), SUBJECTS)
    parser.add_argument("--queries", type=int, help="number of queries per case (default: by case and device)")


def write_requests(queries: int, documents: int, seed: int = 2) -> Requests:
    """Queries of 3 to 9 words, and passages with the median length (54 words) and spread of MS MARCO."""
    writer = Writer(seed)
    lengths = writer.lognormal(queries * documents, 54, sigma=0.42, low=10, high=200)
    passages = [writer.of_words(int(length)) for length in lengths]
    return [
        (writer.of_words(int(length)), passages[at * documents : (at + 1) * documents])
        for at, length in enumerate(writer.uniform(queries, 3, 9))
    ]


def run(arguments: argparse.Namespace) -> int:
    """Measures every case and prints the table."""
    device = compare.device_of(arguments)
    output = Report(arguments, "rerank", device)
    try:
        folder = checkpoints.prepare(checkpoints.choice(arguments), "rerank")
        rows = _measure(arguments, folder, device, output)
    except (checkpoints.ModelMissingError, compare.DisagreementError, EngineError) as error:
        print(f"bench rerank: {error}", file=sys.stderr)
        return 1
    output.finish(table_of(rows, f"rerank, {folder.name}, {device}"))
    return 0


def _measure(arguments: argparse.Namespace, folder: Path, device: str, output: Report) -> list[Row]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    subjects, close = _subjects(arguments, folder, device)
    try:
        config, computed = config_of(folder), compare.computed_by(subjects)
        products = ceiling(config, device) if computed else None

        def work() -> float:
            assert computed
            return linear_flops(config, computed.tokens, computed.texts)  # attention, some 2 % here, is left out

        rows: list[Row] = []
        for name in arguments.cases:
            requests = write_requests(arguments.queries or CASES[name][device], int(name))
            lengths = _lengths(tokenizer, requests)
            for subject in subjects:
                if subject.name == "winnow":
                    subject.batch_size = int(name)
                if subject.name == "recipe":
                    subject.batch_size = _recipe_batch(int(name), max(lengths), folder, device, output)
            _check(subjects, requests, device)
            runs = [(subject, partial(subject.rerank, requests)) for subject in subjects]
            measurement = Measurement("rerank", name, "pairs/s", len(lengths), runs, products, work)
            rows += compare.timed_rows(measurement, arguments.repeats, output)
        return rows
    finally:
        close()


def _subjects(arguments: argparse.Namespace, folder: Path, device: str) -> tuple[list[Reranker], Callable[[], None]]:
    """The subjects, winnow first. Winnow runs in its own process, the others in this one."""
    from bench.subjects.winnow import WinnowReranker

    compare.settle()
    subjects: list[Reranker] = []
    chosen = set(arguments.subjects)
    if "winnow" in chosen:
        subjects.append(WinnowReranker(folder, device, 0, arguments.batch_tokens))
    if "recipe" in chosen:
        from bench.subjects.recipe import RecipeReranker

        subjects.append(RecipeReranker(folder, device, 0))
    if "sentence-transformers" in chosen:
        from bench.subjects.sentence_transformers import SentenceTransformersReranker

        model = SentenceTransformersReranker.load(folder, device)
        subjects += [SentenceTransformersReranker(model, size) for size in arguments.batch_sizes]

    def close() -> None:
        for subject in subjects:
            subject.close()

    return subjects, close


def _lengths(tokenizer: Tokenizer, requests: Requests) -> list[int]:
    """Tokens of each pair, including the prompt."""
    texts = [
        RERANK_PREFIX + RERANK_BODY.format(instruction=DEFAULT_INSTRUCTION, query=query) + f" {text}" + RERANK_SUFFIX
        for query, documents in requests
        for text in documents
    ]
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]


def _recipe_batch(documents: int, longest: int, folder: Path, device: str, output: Report) -> int:
    """Batch size of the model card's recipe: all documents, halved until the logits fit into memory."""
    if device == "cuda":
        return min(documents, 50)
    batch, row = documents, 4 * longest * config_of(folder).vocab_size
    while batch > 1 and batch * row > 0.8 * (host.free_memory() or math.inf):
        batch = (batch + 1) // 2
    if batch < documents:
        output.note(
            f"recipe: the logits of {documents} pairs take {documents * row / 1e9:.0f} GB; in batches of {batch}"
        )
    return batch


def _check(subjects: Sequence[Reranker], requests: Requests, device: str) -> None:
    """Compares all subjects on three documents of the first query. Also warms them up."""
    query, documents = requests[0]
    by_length = sorted(documents, key=len)
    sample = [(query, [by_length[0], by_length[len(by_length) // 2], by_length[-1]])]
    outputs = [(subject, subject.rerank(sample)) for subject in subjects]
    compare.check(outputs, _greatest_difference, _TOLERANCE[device])


def _greatest_difference(a: Numbers, b: Numbers) -> float:
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")
