"""A reranker that was saved with a classification head gives the scores of the one that answers yes or no."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import CheckpointError
from services.engine.types import EngineSettings, Score
from tests.support.checkpoints import edit_config, repack
from tests.support.recipe import RERANK_PREFIX, RERANK_SUFFIX, TASK, Recipe
from tests.unit.engine.conftest import LIMIT, blocking

QUERY = "what is gravity?"
DOCUMENTS = ["gravity is a force", "", "the capital of China is Beijing; " * 30, "yes", "bodies"]


def options(folder: Path) -> EngineSettings:
    return EngineSettings(str(folder), max_tokens=LIMIT, threads=1, dtype="float32")


def logits(folder: Path) -> np.ndarray:
    with blocking(RerankEngine.load(options(folder))) as rerank:
        return np.array([item.logit for item in rerank("rerank", QUERY, DOCUMENTS).items], np.float32)


def fingerprint(folder: Path) -> str:
    return RerankEngine.load(options(folder)).info.fingerprint


@pytest.fixture(params=["tied", "untied"])
def reranker(checkpoints: Callable[..., Path], request: pytest.FixtureRequest) -> Path:
    return checkpoints(request.param)


@pytest.mark.parametrize("labels", [("LABEL_0",), ("no", "yes"), ("Yes", "No")])
def test_scores_are_bit_by_bit_those_of_yes_over_no(reranker: Path, labels: tuple[str, ...], tmp_path: Path) -> None:
    folder = repack(reranker, tmp_path / "repack", [label.lower() if len(labels) == 2 else label for label in labels])
    edit_config(folder, id2label=dict(enumerate(labels)))
    np.testing.assert_array_equal(logits(folder), logits(reranker))


def test_scores_are_those_of_transformers(reranker: Path, tmp_path: Path) -> None:
    folder = repack(reranker, tmp_path / "repack")
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = torch.randn(tensors["score.weight"].shape, generator=torch.Generator().manual_seed(1))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    from transformers import Qwen3ForSequenceClassification

    model = Qwen3ForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    recipe = Recipe(folder, LIMIT)
    prefix, suffix = recipe.ids(RERANK_PREFIX), recipe.ids(RERANK_SUFFIX)
    bodies = [f"<Instruct>: {TASK}\n<Query>: {QUERY}\n<Document>: {document}" for document in DOCUMENTS]
    room = LIMIT - len(prefix) - len(suffix)
    with torch.no_grad():
        rows = [torch.tensor([prefix + recipe.ids(body)[:room] + suffix]) for body in bodies]
        expected = np.array([model(input_ids=row).logits.item() for row in rows])
    np.testing.assert_allclose(logits(folder), expected, atol=1e-5, rtol=1e-5)


def test_which_row_means_yes_counts_in_the_fingerprint(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    folder = repack(checkpoints(), tmp_path / "repack", ("no", "yes"))
    before = fingerprint(folder)
    edit_config(folder, id2label={"0": "yes", "1": "no"})
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    ("labels", "function", "score"),
    [
        (["LABEL_0"], None, Score.PROBABILITY),
        (["LABEL_0"], "torch.nn.modules.activation.Sigmoid", Score.PROBABILITY),
        (["LABEL_0"], "torch.nn.modules.linear.Identity", Score.LOGIT),
        (
            ["no", "yes"],
            "torch.nn.modules.linear.Identity",
            Score.PROBABILITY,
        ),  # that of two logits, which are not ours
    ],
)
def test_a_score_is_what_sentence_transformers_makes_of_the_logit(
    checkpoints: Callable[..., Path], tmp_path: Path, labels: list[str], function: str | None, score: Score
) -> None:
    folder = repack(checkpoints(), tmp_path / "repack", labels)
    edit_config(folder, sentence_transformers={"activation_fn": function} if function else None)
    assert RerankEngine.load(options(folder)).info.capabilities.score is score


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ["score.weight is [1, 64]", "[2, 64]"]),
        ({"id2label": None}, ["score.weight is [1, 64]", "[2, 64]"]),  # two labels, as transformers reads it
        ({"id2label": None, "num_labels": 3}, ["score.weight is [1, 64]", "[3, 64]"]),
        ({"architectures": ["Qwen3ForCausalLM"]}, ["score.weight", "classification head"]),
    ],
)
def test_a_head_that_config_json_tells_otherwise_is_refused(
    checkpoints: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], says: list[str]
) -> None:
    folder = repack(checkpoints(), tmp_path / "repack")
    edit_config(folder, **changes)
    refused(folder, RerankEngine, *says)


def test_two_labels_must_be_yes_and_no(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    folder = repack(checkpoints(), tmp_path / "repack", ("no", "yes"))
    for labels in (["LABEL_0", "LABEL_1"], ["yes", "yes"]):
        edit_config(folder, id2label=dict(enumerate(labels)))
        refused(folder, RerankEngine, "id2label", "'yes' and 'no'")


def test_it_is_no_embedding_model(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    refused(repack(checkpoints(), tmp_path / "repack"), EmbedEngine, "architectures", "rerank worker")


def refused(folder: Path, engine: type[EmbedEngine] | type[RerankEngine], *says: str) -> None:
    with pytest.raises(CheckpointError) as error:
        engine.load(options(folder))
    assert [part for part in says if part not in str(error.value)] == [], str(error.value)
