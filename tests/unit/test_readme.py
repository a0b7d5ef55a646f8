"""The README tells the truth: its settings exist, its targets exist, its links lead somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

from gateway.settings import GatewaySettings
from services.embed.settings import EmbedSettings
from services.engine.models.recipes import RECIPES
from services.rerank.settings import RerankSettings
from services.runtime.settings import described

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DEFAULTS = {
    name: default for kind in (EmbedSettings, RerankSettings, GatewaySettings) for name, default, _ in described(kind)
}
ROWS = [line for line in README.splitlines() if re.match(r"\| `(EMBED|RERANK|GATEWAY|…)_", line)]


def spelled_out(cell: str) -> list[list[str]]:
    """`…_X` stands for the three processes, in the order of their defaults."""
    names = re.findall(r"`((?:EMBED|RERANK|GATEWAY|…)_[A-Z_]+)`", cell)
    return [
        [name.replace("…", prefix) for prefix in ("EMBED", "RERANK", "GATEWAY")] if "…" in name else [name]
        for name in names
    ]


@pytest.mark.parametrize("row", ROWS)
def test_settings_exist_with_the_defaults_that_it_names(row: str) -> None:
    _, variables, default, _, _ = re.split(r"(?<!\\)\|", row)
    groups = spelled_out(variables)
    assert groups
    for name in (name for group in groups for name in group):
        assert name in DEFAULTS, name
    shown = re.findall(r"`([^`]*)`", default)
    if len(shown) == 1:
        assert {DEFAULTS[name] for group in groups for name in group} == {shown[0]}
    elif len(shown) == len(groups):
        assert [{DEFAULTS[name] for name in group} for group in groups] == [{value} for value in shown]
    elif shown:
        assert [DEFAULTS[name] for name in groups[0]] == shown


def test_there_is_a_table() -> None:
    assert len(ROWS) > 10


def test_every_model_with_a_recipe_is_in_the_table() -> None:
    """A row may shorten names: "Qwen3-Reranker-4B, -8B", "e5-small, e5-base, and their -v2"."""
    names = {id_.rpartition("/")[2] for id_ in RECIPES}
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| ")]
    table = " ".join(rows)
    missing = {name for name in names if name not in table}
    for name in missing:
        stem, _, end = name.rpartition("-")
        assert any(stem in row and f"-{end}" in row for row in rows), name


def test_make_targets_exist() -> None:
    known = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text("utf-8"), re.MULTILINE):
            assert re.search(rf"^\s+{target}\s", known, re.MULTILINE), target


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8")):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
