"""Prompts of a folder and of a recipe: which one counts for which input type."""

import logging
from pathlib import Path
from typing import Any

import pytest

from services.engine.checkpoint.sentence_transformers import Described
from services.engine.errors import CheckpointError
from services.engine.models.recipes import Recipe
from services.engine.models.wording import wording
from services.engine.text.templates import Wording
from tests.support.encoders import write

INSTRUCT = "Instruct: {instruction}\nQuery: "


def read(folder: Path, recipe: Recipe | None = None, **said: Any) -> Wording:
    write(folder / "config_sentence_transformers.json", said)
    return wording("tiny", Described(folder), recipe)


@pytest.mark.parametrize(
    ("said", "query", "document", "symmetric"),
    [
        ({}, "", "", ""),
        ({"prompts": {"query": None, "document": None}}, "", "", ""),
        ({"prompts": {"query": "q: ", "document": "d: "}}, "q: ", "d: ", None),
        ({"prompts": {"query": "q: ", "passage": "p: ", "corpus": "c: "}}, "q: ", "p: ", None),
        ({"prompts": {"query": "q: ", "document": "", "passage": "p: "}}, "q: ", "", None),
        ({"prompts": {"query": "q: ", "s": "s: "}, "default_prompt_name": "s"}, "q: ", "", "s: "),
    ],
)
def test_a_folder_s_prompts(tmp_path: Path, said: dict[str, Any], query: str, document: str, symmetric: str) -> None:
    assert read(tmp_path, **said) == Wording(query=query, document=document, symmetric=symmetric)


def test_a_recipe_says_it_instead(tmp_path: Path) -> None:
    recipe = Recipe(source="a test", query=INSTRUCT, document="d: ", instruction="Find it", symmetric="Compare")
    got = read(tmp_path, recipe)
    assert got == Wording(query=INSTRUCT, document="d: ", instruction="Find it", symmetric="Compare")


def test_what_a_recipe_leaves_open_is_the_folder_s(tmp_path: Path) -> None:
    got = read(tmp_path, Recipe(source="a test"), prompts={"query": "q: "})
    assert got == Wording(query="q: ", document="", symmetric=None)


@pytest.mark.parametrize(("prompt", "warns"), [("Instruct: Find it\nQuery: ", False), ("", False), ("other: ", True)])
def test_a_folder_that_contradicts_its_recipe(
    tmp_path: Path, prompt: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe(source="a test", query=INSTRUCT, instruction="Find it")
    with caplog.at_level(logging.WARNING, "winnow.engine"):
        read(tmp_path, recipe, prompts={"query": prompt})
    assert ("its folder puts 'other: ' before queries" in caplog.text) == warns


def test_a_default_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="default_prompt_name is 's', but no prompt is named so"):
        read(tmp_path, default_prompt_name="s")
