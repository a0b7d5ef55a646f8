"""The golden self-check: numbers that a source prints are reproduced, or the model is not served."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.engine import golden
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import CheckpointError
from services.engine.load import Loaded, load
from services.engine.models.recipes import RECIPES, Expected, Golden, Recipe, Recipes, Tolerance
from services.engine.types import EngineSettings, Score
from tests.support import recipe as card
from tests.support.checkpoints import save

QUERIES = ["what is the capital of China?", "gravity"]
DOCUMENTS = ["the capital of China is Beijing", "gravity is a force that attracts two bodies towards each other"]
TASK = "Retrieve parallel sentences"
LIMIT = 256


@pytest.fixture(scope="module")
def folder(checkpoints: Callable[..., Path]) -> Path:
    return checkpoints()


def numbers_of_a_card(folder: Path, embeds: bool, instruction: str | None) -> Golden:
    """What transformers makes of the texts, with the model cards' own code."""
    reference, task = card.Recipe(folder, LIMIT), instruction or card.TASK
    if embeds:
        queries = reference.embed([f"Instruct: {task}\nQuery:{text}" for text in QUERIES])
        numbers = (queries @ reference.embed(DOCUMENTS).T).ravel()
        texts = [(query, document) for query in QUERIES for document in DOCUMENTS]
    else:
        texts = list(zip(QUERIES, DOCUMENTS, strict=True))
        numbers = np.concatenate([reference.rerank(query, [document], task) for query, document in texts])
    pairs = [Expected(*pair, round(float(number), 4)) for pair, number in zip(texts, numbers, strict=True)]
    strict = Tolerance(float32=1e-4, float16=1e-4, bfloat16=1e-4, int8=1e-4)
    return Golden(source="a test", pairs=tuple(pairs), instruction=instruction, tolerance=strict)


def table(folder: Path, numbers: Golden) -> Recipes:
    return {f"tests/{folder.name.upper()}": Recipe(source="a test", golden=numbers)}


def start(folder: Path, *, embeds: bool, recipes: Recipes, max_tokens: int = LIMIT) -> Loaded:
    loaded = load(EngineSettings(str(folder), max_tokens=max_tokens, threads=1), embeds=embeds, recipes=recipes)
    loaded.runner.close()
    return loaded


@pytest.mark.parametrize("embeds", [True, False], ids=["embed", "rerank"])
@pytest.mark.parametrize("instruction", [None, TASK])
def test_a_model_that_reproduces_the_numbers_starts_and_says_so(
    folder: Path, embeds: bool, instruction: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = numbers_of_a_card(folder, embeds, instruction)
    with caplog.at_level(logging.INFO, "winnow.engine"):
        start(folder, embeds=embeds, recipes=table(folder, numbers))
    (line,) = [record.getMessage() for record in caplog.records if "reproduces" in record.getMessage()]
    listed = ", ".join(f"{pair.number:.4f}" for pair in numbers.pairs)
    assert f"expected {listed}, found " in line


@pytest.mark.parametrize("embeds", [True, False], ids=["embed", "rerank"])
@pytest.mark.parametrize("wrong", [0.01, -0.01, np.nan])
def test_a_model_that_does_not_is_refused_with_both_numbers(folder: Path, embeds: bool, wrong: float) -> None:
    numbers = numbers_of_a_card(folder, embeds, None)
    *first, last = numbers.pairs
    false = replace(numbers, pairs=(*first, replace(last, number=last.number + wrong)))
    with pytest.raises(CheckpointError, match=f"expected .*{last.number + wrong:.4f}, found .*a test"):
        start(folder, embeds=embeds, recipes=table(folder, false))


def test_the_wrong_instruction_is_told_apart(folder: Path) -> None:
    other = replace(numbers_of_a_card(folder, True, TASK), instruction=None)
    with pytest.raises(CheckpointError, match="self-check failed"):
        start(folder, embeds=True, recipes=table(folder, other))


def test_logits_are_compared_as_such(folder: Path) -> None:
    """A card that prints logits: their size is not bounded."""
    loaded = load(EngineSettings(str(folder), max_tokens=LIMIT, threads=1), embeds=False, recipes={})
    parts = loaded.family, loaded.tokenizer, loaded.runner
    pairs = Golden(source="a test", pairs=(Expected(QUERIES[0], DOCUMENTS[0], 0.0),))
    (probability,) = golden.measure(pairs, loaded.info, *parts)
    able = replace(loaded.info.capabilities, score=Score.LOGIT)
    (logit,) = golden.measure(pairs, replace(loaded.info, capabilities=able), *parts)
    loaded.runner.close()
    assert probability == pytest.approx(1 / (1 + np.exp(-logit)))
    assert logit != pytest.approx(probability, abs=1e-3)


def test_texts_that_do_not_fit_are_no_proof(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong = Golden(source="a test", pairs=(Expected("gravity " * 100, DOCUMENTS[0], 9.0),))
    start(folder, embeds=True, recipes=table(folder, wrong), max_tokens=64)
    assert "not compared with the numbers of its source" in caplog.text


def test_another_name_is_not_compared(folder: Path) -> None:
    wrong = Golden(source="a test", pairs=(Expected("gravity", "gravity", 9.0),))
    start(folder, embeds=True, recipes={"tests/Other": Recipe(source="a test", golden=wrong)})


def test_the_token_limit_of_a_recipe_counts(folder: Path) -> None:
    recipes = {f"tests/{folder.name}": Recipe(source="a test", max_tokens=77)}
    assert start(folder, embeds=True, recipes=recipes, max_tokens=0).info.max_tokens == 77


@pytest.mark.parametrize(
    ("name", "kind"), [("Qwen3-Embedding-0.6B", EmbedEngine), ("qwen3-reranker-0.6b", RerankEngine)]
)
def test_other_weights_under_the_name_of_a_known_model_are_refused(
    tmp_path: Path, name: str, kind: type[EmbedEngine] | type[RerankEngine]
) -> None:
    (tmp_path / name).mkdir()
    known = next(recipe.golden for id_, recipe in RECIPES.items() if id_.casefold().endswith(name.casefold()))
    assert known is not None
    with pytest.raises(CheckpointError, match=f"{name}: self-check failed: expected {known.pairs[0].number:.4f}"):
        kind.load(EngineSettings(str(save(tmp_path / name)), max_tokens=LIMIT, threads=1))
