"""Compares Qwen3-Embedding-0.6B and Qwen3-Reranker-0.6B in Winnow's engine with the numbers in their model cards."""

import argparse
import asyncio
import sys
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import EngineError
from services.engine.types import (
    EmbedItem,
    EmbedResult,
    EngineSettings,
    Failure,
    InputType,
    RerankItem,
    RerankResult,
)

T = TypeVar("T")
Numbers = npt.NDArray[np.float64]

_QUERIES = ["What is the capital of China?", "Explain gravity"]
_DOCUMENTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is "
    "responsible for the movement of planets around the sun.",
]
# Model card of Qwen/Qwen3-Embedding-0.6B: queries x documents.
_COSINES = np.array([[0.7646, 0.1414], [0.1355, 0.6000]])
# Each query with its document, computed in float32 with the recipe in the model card of Qwen/Qwen3-Reranker-0.6B.
_PROBABILITIES = np.array([0.9995, 0.9972])
_TOLERANCE = 2e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench verify-models`."""
    parser.add_argument("--embed-model", default="Qwen/Qwen3-Embedding-0.6B", help="a hub id, or a folder")
    parser.add_argument("--rerank-model", default="Qwen/Qwen3-Reranker-0.6B", help="a hub id, or a folder")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if all numbers are right."""
    settings = [
        EngineSettings(model, device=arguments.device, dtype="float32", max_tokens=1024)
        for model in (arguments.embed_model, arguments.rerank_model)
    ]
    try:
        cosines = asyncio.run(_cosines(EmbedEngine.load(settings[0])))
        probabilities = asyncio.run(_probabilities(RerankEngine.load(settings[1])))
    except EngineError as error:
        print(f"verify-models: {error}", file=sys.stderr)
        return 1
    right = [
        _say(arguments.embed_model, cosines, _COSINES),
        _say(arguments.rerank_model, probabilities, _PROBABILITIES),
    ]
    return 0 if all(right) else 1


async def _cosines(engine: EmbedEngine) -> Numbers:
    engine.start()
    try:
        queries = _vectors(await engine.embed(_QUERIES, input_type=InputType.QUERY))
        documents = _vectors(await engine.embed(_DOCUMENTS, input_type=InputType.DOCUMENT))
    finally:
        engine.close()
    return queries @ documents.T


async def _probabilities(engine: RerankEngine) -> Numbers:
    engine.start()
    try:
        results = [await engine.rerank(query, [text]) for query, text in zip(_QUERIES, _DOCUMENTS, strict=True)]
    finally:
        engine.close()
    return np.array([_probability(result) for result in results])


def _vectors(result: EmbedResult) -> Numbers:
    return np.stack([_sound(item, EmbedItem).vector for item in result.items]).astype(np.float64)


def _probability(result: RerankResult) -> float:
    return _sound(result.items[0], RerankItem).probability


def _sound(item: T | Failure, kind: type[T]) -> T:
    if isinstance(item, kind):
        return item
    assert isinstance(item, Failure)
    raise item.error


def _say(model: str, found: Numbers, expected: Numbers) -> bool:
    """Prints one line: the maximum difference, and whether it is small enough."""
    difference = float(np.abs(found - expected).max())
    right = difference <= _TOLERANCE
    print(
        f"{model}: {np.round(found, 4).tolist()}, {difference:.1g} from the model card: {'right' if right else 'WRONG'}"
    )
    return right
