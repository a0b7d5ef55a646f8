"""The golden self-check: a model whose card prints numbers must reproduce them before it serves.

A wrong prompt, mask, pooling or head gives vectors and scores that look like any others. Only known numbers tell.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import TypeVar

from services.engine.errors import CheckpointError, EngineError, InvalidInput
from services.engine.models.base import Family
from services.engine.models.recipes import Expected, Golden
from services.engine.runner import Runner
from services.engine.text.prompts import Prompt
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Failure, InputType, ModelInfo, RerankItem, Score, Truncation, Vector

T = TypeVar("T")

log = logging.getLogger("winnow.engine")


def check(golden: Golden, info: ModelInfo, family: Family, tokenizer: Tokenizer, runner: Runner) -> None:
    """Raises CheckpointError if the model does not reproduce the numbers; blocking.

    Texts that the server's token limit would cut prove nothing: a warning says so.
    """
    try:
        found = measure(golden, info, family, tokenizer, runner)
    except InvalidInput as error:
        log.warning("%s: not compared with the numbers of its source: %s", info.name, error)
        return
    except EngineError as error:
        raise CheckpointError(f"{info.name}: self-check failed: {error}") from error
    numbers = f"expected {_listed(pair.number for pair in golden.pairs)}, found {_listed(found)}"
    if not reproduced(golden, found, info.dtype):
        raise CheckpointError(
            f"{info.name}: self-check failed: {numbers} (source: {golden.source}); give the model's own files,"
            " unchanged. A model that was trained further needs a folder with another name"
        )
    log.info("%s: reproduces the numbers of its source: %s", info.name, numbers)


def reproduced(golden: Golden, found: Sequence[float], dtype: str) -> bool:
    """Whether all numbers are within the tolerance of the number format."""
    tolerance = golden.tolerance.of(dtype)
    return all(abs(number - pair.number) <= tolerance for number, pair in zip(found, golden.pairs, strict=True))


def measure(golden: Golden, info: ModelInfo, family: Family, tokenizer: Tokenizer, runner: Runner) -> list[float]:
    """What the model makes of each pair: the cosine similarity, or the score as the model's card defines it.

    Raises InvalidInput for texts that do not fit into the server's token limit, and other EngineErrors.
    """
    if info.dimensions:
        return _cosines(golden, info, family, tokenizer, runner)
    return [_score(info, family, tokenizer, runner, golden.instruction, pair) for pair in golden.pairs]


def _cosines(golden: Golden, info: ModelInfo, family: Family, tokenizer: Tokenizer, runner: Runner) -> list[float]:
    prompts = family.embed_prompts(tokenizer)

    def embed(texts: Sequence[str], input_type: InputType, instruction: str | None) -> dict[str, Vector]:
        unique = list(dict.fromkeys(texts))
        built = prompts.build(
            unique,
            input_type=input_type,
            instruction=instruction,
            truncation=Truncation.ERROR,
            max_tokens=info.max_tokens,
        )
        return dict(zip(unique, _rows(runner, built), strict=True))

    queries = embed([pair.query for pair in golden.pairs], InputType.QUERY, golden.instruction)
    documents = embed([pair.document for pair in golden.pairs], InputType.DOCUMENT, None)
    return [float(queries[pair.query] @ documents[pair.document]) for pair in golden.pairs]


def _score(
    info: ModelInfo, family: Family, tokenizer: Tokenizer, runner: Runner, instruction: str | None, pair: Expected
) -> float:
    _, built = family.rerank_prompts(tokenizer).build(
        pair.query,
        [pair.document],
        instruction=instruction,
        truncation=Truncation.ERROR,
        max_tokens=info.max_tokens,
    )
    ((logit,),) = _rows(runner, built)
    item = RerankItem(float(logit), tokens=0, truncated=False)
    return item.logit if info.capabilities.score is Score.LOGIT else item.probability


def _rows(runner: Runner, prompts: Sequence[Prompt | Failure]) -> list[Vector]:
    tokens = [_sound(prompt.error if isinstance(prompt, Failure) else prompt.tokens) for prompt in prompts]
    return [_sound(row) for row in runner.run(tokens)]


def _sound(value: T | EngineError) -> T:
    if isinstance(value, EngineError):
        raise value
    return value


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:.4f}" for number in numbers)
