"""Recipes: found by hub id or folder name, each with its source, and without contradictions."""

import pytest

from services.engine.models.recipes import RECIPES, Recipe, recipe_of

ROWS = [pytest.param(recipe, id=name) for name, recipe in RECIPES.items()]


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("BAAI/bge-m3", "BAAI/bge-m3"),
        ("baai/BGE-M3", "BAAI/bge-m3"),
        ("bge-m3", "BAAI/bge-m3"),
        ("Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-0.6B"),
        ("GTE-Qwen2-7B-Instruct", "Alibaba-NLP/gte-Qwen2-7B-instruct"),
    ],
)
def test_a_recipe_is_found_by_id_and_by_folder_name(name: str, of: str) -> None:
    assert recipe_of(name) is RECIPES[of]


@pytest.mark.parametrize("name", ["", "nano-embed", "m3", "bge-m3-finetuned", "somebody/bge-m3", "BAAI"])
def test_another_model_has_no_recipe(name: str) -> None:
    assert recipe_of(name) is None


def test_a_folder_name_means_one_model() -> None:
    names = [id_.rpartition("/")[2].casefold() for id_ in RECIPES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("recipe", ROWS)
def test_a_row_is_whole(recipe: Recipe) -> None:
    assert recipe.source
    takes_instructions = "{instruction}" in (recipe.query or "")
    assert takes_instructions == (recipe.instruction is not None)
    assert "{instruction}" not in (recipe.document or "") + (recipe.symmetric or "")
    if recipe.golden is not None:
        assert recipe.golden.source
        assert recipe.golden.pairs
        in_unit = recipe.score is None or recipe.score.value == "probability"
        assert not in_unit or all(-1 <= pair.number <= 1 for pair in recipe.golden.pairs)


def test_a_table_may_be_given() -> None:
    mine = Recipe(source="a test")
    assert recipe_of("tiny", {"tests/Tiny": mine}) is mine
    assert recipe_of("bge-m3", {"tests/Tiny": mine}) is None
