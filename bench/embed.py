"""Embedding throughput: the same texts through the same weights, side by side."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bench import checkpoints, compare
from bench.compare import Losses, Measurement, Numbers
from bench.flops import Architecture
from bench.folders import query_prompt
from bench.report import WINNOW, Report, Row, table_of
from bench.subjects import Computed, Model, Subject, SubjectError
from bench.subjects.start import EMBEDDERS
from bench.texts import Writer
from services.engine.checkpoint.sentence_transformers import longest_text

_RECIPE_BATCH_ON_CUDA = 64  # a padded batch of everything would not fit
# Greatest 1 - cosine between a subject's vector of a text and that of transformers in float32.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-3, "float16": 1e-3, "int8": 0.2}
_SAMPLE = 5  # texts, from the shortest to the longest


@dataclass(frozen=True, slots=True)
class Case:
    """Texts of one kind, `count` of them by device."""

    write: Callable[[Writer, int, Callable[[str], int]], list[str]]
    count: dict[str, int]
    queries: bool = False


CASES: dict[str, Case] = {
    # 8 to 32 tokens of the caller's text, plus the query prompt.
    "short": Case(
        lambda writer, n, count: [writer.of_tokens(int(k), count) for k in writer.uniform(n, 8, 32)],
        {"cpu": 48, "cuda": 2048},
        queries=True,
    ),
    "passages": Case(
        lambda writer, n, count: [
            writer.of_tokens(int(k), count) for k in writer.lognormal(n, 120, sigma=0.5, low=16, high=512)
        ],
        {"cpu": 24, "cuda": 2048},
    ),
    "long": Case(
        lambda writer, n, count: [writer.of_tokens(int(k), count) for k in writer.uniform(n, 1984, 2047)],
        {"cpu": 2, "cuda": 128},
    ),
    "mixed": Case(
        lambda writer, n, count: [
            writer.of_words(int(k)) for k in writer.lognormal(n, 67, sigma=0.8, low=3, high=1500)
        ],
        {"cpu": 48, "cuda": 2048},
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench embed`."""
    compare.add_arguments(parser, list(CASES), list(EMBEDDERS))
    parser.add_argument("--texts", type=int, help="how many texts a case has (default: by case and device)")


def run(arguments: argparse.Namespace) -> int:
    """Measures every case and prints the table."""
    device = compare.device_of(arguments)
    output = Report(arguments, compare.run_name("embed", arguments), device)
    try:
        folder = checkpoints.prepare(checkpoints.choice(arguments), "embed")
        rows = _measure(arguments, folder, device, output)
    except (checkpoints.ModelMissingError, compare.DisagreementError, SubjectError) as error:
        print(f"bench embed: {error}", file=sys.stderr)
        return 1
    output.finish(table_of(rows, f"embed, {folder.name}, {output.place}", loss="1 - cos"))
    return 0


def _measure(arguments: argparse.Namespace, folder: Path, device: str, output: Report) -> list[Row]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    architecture = Architecture.of(folder)

    def flops(lengths: list[int], computed: Computed) -> float:
        # On a CPU the ceiling is of products with weights; on CUDA the roofline counts attention too.
        attention = architecture.attention_flops(lengths) if device == "cuda" else 0.0
        return architecture.linear_flops(computed.tokens, computed.texts) + attention

    def count_tokens(piece: str) -> int:
        return len(tokenizer.encode(piece, add_special_tokens=False).ids)

    rows: list[Row] = []
    with compare.subjects_of(arguments, EMBEDDERS, folder, device, output) as (subjects, start_reference):
        reference = start_reference()
        ceilings = compare.ceilings_of(subjects, architecture.products, device)
        for name in arguments.cases:
            case = CASES[name]
            count = arguments.texts or case.count[device]
            texts = case.write(Writer(seed=1), count, count_tokens)
            lengths = _lengths(folder, tokenizer, texts, queries=case.queries)
            for subject in subjects:
                if subject.name in (WINNOW, "recipe"):
                    subject.batch_size = count
                if subject.name == "recipe" and device == "cuda":
                    subject.batch_size = min(count, _RECIPE_BATCH_ON_CUDA)
            losses = _losses(subjects, reference, texts, lengths, case.queries)
            runs = [(subject, partial(subject.embed, texts, queries=case.queries)) for subject in subjects]
            measurement = Measurement(
                "embed", name, "tokens/s", sum(lengths), runs, losses, ceilings, partial(flops, lengths)
            )
            rows += compare.timed_rows(measurement, arguments.repeats, output)
    return rows


def _lengths(folder: Path, tokenizer: Tokenizer, texts: Sequence[str], *, queries: bool) -> list[int]:
    """Tokens of each text that every subject has to compute, including prompt and special tokens."""
    head, most = query_prompt(folder) if queries else "", longest_text(folder) or sys.maxsize
    return [min(most, len(encoding.ids)) for encoding in tokenizer.encode_batch_fast([head + text for text in texts])]


def _losses(
    subjects: Sequence[Subject], reference: Model, texts: Sequence[str], lengths: list[int], queries: bool
) -> Losses:
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    sample = [texts[order[int(at)]] for at in np.linspace(0, len(order) - 1, min(_SAMPLE, len(order)))]
    expected = reference.embed(sample, queries, len(sample))
    return compare.losses(
        subjects, lambda subject: subject.embed(sample, queries=queries), expected, _one_minus_cosine, _TOLERANCE
    )


def _one_minus_cosine(a: Numbers, b: Numbers) -> float:
    """The greatest of all texts'."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)  # a rounded vector's length is not exactly 1
    return max(0.0, float(np.max(1.0 - (a * b).sum(axis=1) / lengths)))
