"""Tensors of an encoder: each used, or without effect, or refused by name."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import CheckpointError
from services.engine.types import EngineSettings
from tests.support import encoders


def add(folder: Path, **tensors: torch.Tensor | None) -> EngineSettings:
    """Adds tensors to a checkpoint; None removes one."""
    file = folder / "model.safetensors"
    found = {**load_file(file), **tensors}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, file)
    return EngineSettings(str(folder), threads=1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("encoder.layer.3.output.dense.bias", "lies beyond the 3 layers that config.json names"),
        ("encoder.layer.0.attention.self.distance_embedding.weight", "belongs to relative positions"),
        ("encoder.layer.0.crossattention.self.query.weight", "belongs to a decoder"),
        ("encoder.layer.0.output.LayerNorm.gamma", "is named as in TensorFlow"),
        ("encoder.layer.0.intermediate.gate.weight", "is not part of a bert model, and would be ignored"),
        ("sparse_linear.weight", "is not part of a bert model, and would be ignored"),
    ],
)
def test_a_tensor_that_would_be_ignored_is_refused(tmp_path: Path, name: str, said: str) -> None:
    settings = add(encoders.describe(encoders.save(tmp_path, "bert")), **{name: torch.ones(3)})
    with pytest.raises(CheckpointError, match=re.escape(f"tensor {name} {said}")):
        EmbedEngine.load(settings)


@pytest.mark.parametrize(
    "name",
    ["encoder.layer.1.attention.self.key.bias", "embeddings.LayerNorm.weight", "embeddings.position_embeddings.weight"],
)
def test_a_tensor_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    settings = add(encoders.describe(encoders.save(tmp_path, "bert")), **{name: None})
    with pytest.raises(CheckpointError, match=f"tensor {re.escape(name)} is missing"):
        EmbedEngine.load(settings)


def test_zeros_where_there_may_be_some(tmp_path: Path) -> None:
    settings = add(
        encoders.describe(encoders.save(tmp_path, "roberta")),
        **{
            "embeddings.token_type_embeddings.weight": torch.zeros(1, encoders.HIDDEN),
            "encoder.layer.1.attention.self.key.bias": torch.zeros(encoders.HIDDEN),
        },
    )
    assert EmbedEngine.load(settings).info.dimensions == encoders.HIDDEN
    settings = add(tmp_path, **{"encoder.layer.1.output.dense.weight": torch.zeros(encoders.HIDDEN, 80)})
    with pytest.raises(CheckpointError, match=r"tensor encoder\.layer\.1\.output\.dense\.weight is all zero"):
        EmbedEngine.load(settings)


def test_a_reranker_without_its_pooler_is_refused(tmp_path: Path) -> None:
    settings = add(encoders.save(tmp_path, "bert", classifies=True), **{"bert.pooler.dense.weight": None})
    with pytest.raises(CheckpointError, match=r"tensor pooler\.dense\.weight is missing"):
        RerankEngine.load(settings)
