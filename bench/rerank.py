"""Reranking throughput with the text lengths of MS MARCO: the same pairs and the same weights, side by side."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bench import checkpoints, compare
from bench.compare import Losses, Measurement, Numbers
from bench.flops import Architecture
from bench.report import WINNOW, Report, Row, table_of
from bench.shapes import is_encoder
from bench.subjects import Computed, Model, Subject, SubjectError
from bench.subjects.start import RERANKERS
from bench.texts import Writer
from services.engine import host
from services.engine.models.qwen3.prompts import DEFAULT_INSTRUCTION, RERANK_BODY, RERANK_PREFIX, RERANK_SUFFIX

# Documents per query → queries of a run, by device.
CASES = {"10": {"cpu": 3, "cuda": 128}, "50": {"cpu": 1, "cuda": 32}, "100": {"cpu": 1, "cuda": 16}}
# Greatest difference between a subject's probability of a pair and that of transformers in float32.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2, "int8": 0.2}

Requests = list[tuple[str, list[str]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench rerank`."""
    compare.add_arguments(parser, list(CASES), list(RERANKERS))
    parser.add_argument("--queries", type=int, help="how many queries a case has (default: by case and device)")


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
    output = Report(arguments, compare.run_name("rerank", arguments), device)
    try:
        folder = checkpoints.prepare(checkpoints.choice(arguments), "rerank")
        rows = _measure(arguments, folder, device, output)
    except (checkpoints.ModelMissingError, compare.DisagreementError, SubjectError) as error:
        print(f"bench rerank: {error}", file=sys.stderr)
        return 1
    output.finish(table_of(rows, f"rerank, {folder.name}, {output.place}", loss="difference"))
    return 0


def _measure(arguments: argparse.Namespace, folder: Path, device: str, output: Report) -> list[Row]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    architecture = Architecture.of(folder)

    def flops(computed: Computed) -> float:
        return architecture.linear_flops(computed.tokens, computed.texts)  # attention, some 2 % here, is left out

    rows: list[Row] = []
    with compare.subjects_of(arguments, RERANKERS, folder, device, output) as (subjects, start_reference):
        reference = start_reference()
        ceilings = compare.ceilings_of(subjects, architecture.products, device)
        for name in arguments.cases:
            requests = write_requests(arguments.queries or CASES[name][device], int(name))
            lengths = _lengths(config, tokenizer, requests)
            recipe_batch = _recipe_batch(config, int(name), max(lengths), device, output)
            for subject in subjects:
                if subject.name == WINNOW:
                    subject.batch_size = int(name)
                if subject.name == "recipe":
                    subject.batch_size = recipe_batch
            losses = _losses(subjects, reference, requests)
            runs = [(subject, partial(subject.rerank, requests)) for subject in subjects]
            measurement = Measurement("rerank", name, "pairs/s", len(lengths), runs, losses, ceilings, flops)
            rows += compare.timed_rows(measurement, arguments.repeats, output)
    return rows


def _lengths(config: Mapping[str, Any], tokenizer: Tokenizer, requests: Requests) -> list[int]:
    """Tokens of each pair, including prompt and special tokens."""
    pairs = [(query, text) for query, documents in requests for text in documents]
    texts: list[Any] = pairs
    if not is_encoder(config):
        heads = {query: RERANK_BODY.format(instruction=DEFAULT_INSTRUCTION, query=query) for query, _ in requests}
        texts = [f"{RERANK_PREFIX}{heads[query]} {text}{RERANK_SUFFIX}" for query, text in pairs]
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]


def _recipe_batch(config: Mapping[str, Any], documents: int, longest: int, device: str, output: Report) -> int:
    """Batch size of the model card's recipe: all documents, halved until the logits fit into memory."""
    if device == "cuda":
        return min(documents, 50)
    if is_encoder(config):
        return documents
    batch, row = documents, 4 * longest * int(config["vocab_size"])
    while batch > 1 and batch * row > 0.8 * (host.free_memory() or math.inf):
        batch = (batch + 1) // 2
    if batch < documents:
        output.note(
            f"recipe: the logits of {documents} pairs take {documents * row / 1e9:.0f} GB; in batches of {batch}"
        )
    return batch


def _losses(subjects: Sequence[Subject], reference: Model, requests: Requests) -> Losses:
    """On three documents of the first query."""
    query, documents = requests[0]
    by_length = sorted(documents, key=len)
    sample = [(query, [by_length[0], by_length[len(by_length) // 2], by_length[-1]])]
    expected = reference.rerank(sample, 3)
    return compare.losses(subjects, lambda subject: subject.rerank(sample), expected, _greatest_difference, _TOLERANCE)


def _greatest_difference(a: Numbers, b: Numbers) -> float:
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")
