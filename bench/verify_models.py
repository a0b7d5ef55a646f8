"""Compares models in Winnow's engine with the numbers that their cards print; both are in the table of recipes."""

import argparse
import sys
from dataclasses import replace

from services.engine import golden
from services.engine.errors import EngineError
from services.engine.load import load
from services.engine.models.recipes import RECIPES, Recipe, recipe_of
from services.engine.types import EngineSettings

_PAIR = ["Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench verify-models`."""
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"hub ids, or folders named as an id's last part; by default {' and '.join(_PAIR)}",
    )
    parser.add_argument("--all", action="store_true", help="every model whose numbers are known")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if all numbers are right."""
    names = arguments.models or _PAIR
    if arguments.all:
        names = [id_ for id_, recipe in RECIPES.items() if recipe.golden is not None]
    right = True
    for name in names:
        try:
            right &= _verify(name, recipe_of(name.rstrip("/").rpartition("/")[2]), arguments.device)
        except EngineError as error:
            print(f"verify-models: {name}: {error}", file=sys.stderr)
            right = False
            if not arguments.all:
                break
    return 0 if right else 1


def _verify(name: str, recipe: Recipe | None, device: str) -> bool:
    """Prints a row for each number, beside that of the card."""
    if recipe is None or recipe.golden is None:
        print(f"{name}: no numbers are known")
        return False
    settings = EngineSettings(name, device=device, dtype="float32", max_tokens=min(recipe.max_tokens or 1024, 1024))
    loaded = load(settings, embeds=recipe.embeds, recipes={})  # wrong numbers are shown here, not refused
    try:
        found = golden.measure(recipe.golden, loaded.info, loaded.family, loaded.tokenizer, loaded.runner)
    finally:
        loaded.runner.close()
    print(f"{name} ({loaded.info.device}, {loaded.info.dtype}; source: {recipe.golden.source})")
    right = True
    for pair, number in zip(recipe.golden.pairs, found, strict=True):
        one = replace(recipe.golden, pairs=(pair,))
        good = golden.reproduced(one, [number], loaded.info.dtype)
        right &= good
        words = f"{pair.query[:40]} | {pair.document[:40]}"
        print(f"  card {pair.number:8.4f}  ours {number:8.4f}  {'right' if good else 'WRONG'}  {words}")
    return right
