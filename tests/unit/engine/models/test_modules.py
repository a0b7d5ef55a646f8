"""What a folder says of pooling, dense layers and unit length: obeyed, or refused by file and key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.engine.checkpoint.sentence_transformers import Described
from services.engine.errors import CheckpointError
from services.engine.layers.pooling import Pooling
from services.engine.models.modules import Modules
from tests.support.encoders import HIDDEN, describe, write

TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
CPU = torch.device("cpu")


def read(folder: Path) -> Modules:
    return Modules.read("tiny", Described(folder), HIDDEN)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("mode", "pooling"), [("cls", Pooling.FIRST), ("mean", Pooling.MEAN), ("lasttoken", Pooling.LAST)]
)
def test_pooling(tmp_path: Path, mode: str, pooling: Pooling) -> None:
    modules = read(describe(tmp_path, pooling=mode))
    assert (modules.pooling, modules.dense) == (pooling, ())


def test_pooling_as_it_was_written_before(tmp_path: Path) -> None:
    folder = describe(tmp_path)
    write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    )
    assert read(folder).pooling is Pooling.FIRST


def test_a_folder_that_says_nothing(tmp_path: Path) -> None:
    modules = read(tmp_path)
    assert (modules.pooling, modules.dense) == (None, ())
    name, head = modules.head(CPU)
    assert name == "embedding"
    assert head(torch.full((1, 4), 2.0)).tolist() == [[0.5] * 4]


def test_dense_layers_are_computed_as_torch_s_modules(tmp_path: Path) -> None:
    folder = describe(tmp_path, dense=[(20, TANH), (30, IDENTITY)])
    _, head = read(folder).head(CPU)
    x = torch.randn(5, HIDDEN)
    layers = []
    for path, width, out in [("2_Dense", HIDDEN, 20), ("3_Dense", 20, 30)]:
        layer = torch.nn.Linear(width, out)
        layer.load_state_dict(
            {k.removeprefix("linear."): v for k, v in load_file(folder / path / "model.safetensors").items()}
        )
        layers.append(layer)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(layers[1](torch.tanh(layers[0](x))), dim=1)
    torch.testing.assert_close(head(x), expected, atol=1e-6, rtol=1e-6)


def test_a_dense_layer_without_bias_and_in_half_precision(tmp_path: Path) -> None:
    folder = describe(tmp_path, dense=[(20, IDENTITY)])
    weight = torch.randn(20, HIDDEN).half()
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")
    edit(folder / "2_Dense" / "config.json", bias=False)
    _, head = read(folder).head(CPU)
    x = torch.randn(2, HIDDEN)
    torch.testing.assert_close(
        head(x), torch.nn.functional.normalize(x @ weight.float().T, dim=1), atol=1e-6, rtol=1e-6
    )


def test_dropout_is_nothing(tmp_path: Path) -> None:
    folder = describe(tmp_path)
    listed = json.loads((folder / "modules.json").read_text())
    listed.insert(2, {"idx": 9, "name": "9", "path": "9_Dropout", "type": "sentence_transformers.models.Dropout"})
    write(folder / "modules.json", listed)
    assert read(folder).dense == ()


REFUSED: dict[str, tuple[dict[str, Any], str, dict[str, Any], str]] = {
    # what is written, a file, its changed keys, what is said
    "two modes": ({"pooling": ["cls", "mean"]}, "", {}, "1_Pooling/config.json: pooling by cls and mean is not served"),
    "max": ({"pooling": "max"}, "", {}, "pooling by max is not served"),
    "weighted mean": ({"pooling": "weightedmean"}, "", {}, "pooling by weightedmean is not served"),
    "without the prompt": ({}, "1_Pooling", {"include_prompt": False}, "include_prompt = false is not served"),
    "another width": ({}, "1_Pooling", {"embedding_dimension": 7}, "its vectors have 7 values, config.json says 48"),
    "an activation of its own": (
        {"dense": [(8, "my.Swish")]},
        "",
        {},
        "2_Dense/config.json: activation_function = 'my.Swish' is not served",
    ),
    "a residual": ({"dense": [(8, TANH)]}, "2_Dense", {"use_residual": True}, "use_residual = True is not served"),
    "of tokens": (
        {"dense": [(8, TANH)]},
        "2_Dense",
        {"module_input_name": "token_embeddings"},
        "module_input_name = 'token_embeddings' is not served",
    ),
    "widths that do not fit": ({"dense": [(8, TANH)]}, "2_Dense", {"in_features": 9}, "in_features is 9, but vectors"),
    "a width that is not stored": ({"dense": [(8, TANH)]}, "2_Dense", {"out_features": 9}, "linear.weight is [8, 48]"),
    "a bias too many": ({"dense": [(8, TANH)]}, "2_Dense", {"bias": False}, "its tensors are linear.bias,"),
    "another similarity": ({"similarity_fn_name": "euclidean"}, "", {}, "similarity_fn_name is 'euclidean'"),
    "dot without unit length": (
        {"similarity_fn_name": "dot", "normalizes": False},
        "",
        {},
        "served at unit length and compared by cosine",
    ),
    "a reranker's": ({"model_type": "CrossEncoder"}, "", {}, "model_type is 'CrossEncoder'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_served_is_named(tmp_path: Path, what: str) -> None:
    how, place, changes, said = REFUSED[what]
    folder = describe(tmp_path, **how)
    if changes:
        edit(folder / place / "config.json", **changes)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        read(folder)


@pytest.mark.parametrize("how", [{"similarity_fn_name": "dot"}, {"normalizes": False}, {"similarity_fn_name": None}])
def test_vectors_of_unit_length_may_be_compared_by_cosine(tmp_path: Path, how: dict[str, Any]) -> None:
    assert read(describe(tmp_path, **how)).pooling is Pooling.MEAN


@pytest.mark.parametrize("kind", ["WeightedLayerPooling", "LayerNorm", "SpladePooling"])
def test_another_module_is_refused(tmp_path: Path, kind: str) -> None:
    folder = describe(tmp_path)
    listed = json.loads((folder / "modules.json").read_text())
    listed.insert(2, {"idx": 9, "name": "9", "path": f"9_{kind}", "type": f"sentence_transformers.models.{kind}"})
    write(folder / "modules.json", listed)
    with pytest.raises(CheckpointError, match=f"modules.json: Transformer, Pooling, {kind}, Normalize is not served"):
        read(folder)


def test_pickled_weights_of_a_layer_are_not_read(tmp_path: Path) -> None:
    folder = describe(tmp_path, dense=[(8, TANH)])
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"2_Dense/pytorch_model\.bin: pickled weights are not read"):
        read(folder)
