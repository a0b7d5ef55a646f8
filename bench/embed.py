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
from bench.ceiling import attention_flops, ceiling, config_of, linear_flops
from bench.compare import Measurement, Numbers
from bench.report import Report, Row, table_of
from bench.subjects import Embedder
from bench.texts import Writer
from services.engine.errors import EngineError
from services.engine.models.qwen3.prompts import DEFAULT_INSTRUCTION, EMBED_QUERY

SUBJECTS = ("winnow", "recipe", "sentence-transformers", "infinity")
_RECIPE_BATCH_ON_CUDA = 64  # a padded batch of everything would not fit
# Maximum of 1 - cosine between two subjects' vectors of a text.
_TOLERANCE = {"cpu": 1e-5, "cuda": 1e-2}


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
    compare.add_arguments(parser, list(CASES), SUBJECTS)
    parser.add_argument("--texts", type=int, help="number of texts per case (default: by case and device)")


def run(arguments: argparse.Namespace) -> int:
    """Measures every case and prints the table."""
    device = compare.device_of(arguments)
    output = Report(arguments, "embed", device)
    try:
        folder = checkpoints.prepare(checkpoints.choice(arguments), "embed")
        rows = _measure(arguments, folder, device, output)
    except (checkpoints.ModelMissingError, compare.DisagreementError, EngineError) as error:
        print(f"bench embed: {error}", file=sys.stderr)
        return 1
    output.finish(table_of(rows, f"embed, {folder.name}, {device}"))
    return 0


def _measure(arguments: argparse.Namespace, folder: Path, device: str, output: Report) -> list[Row]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    subjects, close = _subjects(arguments, folder, device, output)
    try:
        config, computed = config_of(folder), compare.computed_by(subjects)
        products = ceiling(config, device) if computed else None

        def work(lengths: list[int]) -> float:
            assert computed
            # On a CPU the upper bound covers products with weights only; on CUDA it includes attention.
            attention = attention_flops(config, lengths) if device == "cuda" else 0.0
            return linear_flops(config, computed.tokens, computed.texts) + attention

        rows: list[Row] = []
        for name in arguments.cases:
            case = CASES[name]
            count = arguments.texts or case.count[device]
            texts = case.write(Writer(seed=1), count, lambda piece: len(tokenizer.encode(piece).ids) - 1)
            lengths = _lengths(tokenizer, texts, queries=case.queries)
            for subject in subjects:
                if subject.name in {"winnow", "recipe"}:
                    subject.batch_size = count
                if subject.name == "recipe" and device == "cuda":
                    subject.batch_size = min(count, _RECIPE_BATCH_ON_CUDA)
            _check(subjects, texts, lengths, case.queries, device)
            runs = [(subject, partial(subject.embed, texts, queries=case.queries)) for subject in subjects]
            rows += compare.timed_rows(
                Measurement("embed", name, "tokens/s", sum(lengths), runs, products, partial(work, lengths)),
                arguments.repeats,
                output,
            )
        return rows
    finally:
        close()


def _subjects(
    arguments: argparse.Namespace, folder: Path, device: str, output: Report
) -> tuple[list[Embedder], Callable[[], None]]:
    """The subjects, winnow first. Winnow and infinity run in their own processes, the others in this one."""
    from bench.subjects.winnow import WinnowEmbedder

    compare.settle()
    subjects: list[Embedder] = []
    closing: list[Callable[[], None]] = []
    chosen = set(arguments.subjects)
    if "winnow" in chosen:
        subjects.append(WinnowEmbedder(folder, device, 0, arguments.batch_tokens))
    if "recipe" in chosen:
        from bench.subjects.recipe import RecipeEmbedder

        subjects.append(RecipeEmbedder(folder, device, 0))
    if "sentence-transformers" in chosen:
        from bench.subjects.sentence_transformers import SentenceTransformersEmbedder

        model = SentenceTransformersEmbedder.load(folder, device)
        subjects += [SentenceTransformersEmbedder(model, size) for size in arguments.batch_sizes]
    if "infinity" in chosen:
        from bench.subjects.infinity import InfinityEmbedder, InfinityMissingError, InfinityServer

        try:
            with output.console.status("starting infinity (the first time it is installed, which takes minutes)"):
                server = InfinityServer(folder, device, arguments.batch_sizes)
        except InfinityMissingError as error:
            output.note(f"without infinity: it {error}")
        else:
            closing.append(server.close)
            subjects += [InfinityEmbedder(server, size) for size in arguments.batch_sizes]

    def close() -> None:
        for subject in subjects:
            subject.close()
        for end in closing:
            end()

    return subjects, close


def _lengths(tokenizer: Tokenizer, texts: Sequence[str], *, queries: bool) -> list[int]:
    """Tokens of each text that every subject has to compute, including prompt and end token."""
    head = EMBED_QUERY.format(instruction=DEFAULT_INSTRUCTION) if queries else ""
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast([head + text for text in texts])]


def _check(subjects: Sequence[Embedder], texts: Sequence[str], lengths: list[int], queries: bool, device: str) -> None:
    """Compares all subjects on the shortest, a medium and the longest text. Also warms them up."""
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    sample = [texts[order[0]], texts[order[len(order) // 2]], texts[order[-1]]]
    outputs = [(subject, subject.embed(sample, queries=queries)) for subject in subjects]
    compare.check(outputs, _one_minus_cosine, _TOLERANCE[device])


def _one_minus_cosine(a: Numbers, b: Numbers) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float(np.max(1.0 - (a.astype(np.float64) * b).sum(axis=1)))
