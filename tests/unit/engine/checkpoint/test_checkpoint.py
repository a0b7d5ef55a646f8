"""Reading a checkpoint: layouts that must load, and faults that must be named."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.fingerprint import fingerprint
from services.engine.checkpoint.folder import readable
from services.engine.checkpoint.tensors import Tensors
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import CheckpointError
from services.engine.layers.linear import has_int8
from services.engine.models.qwen3.config import ModelConfig
from services.engine.models.qwen3.family import Qwen3Family
from services.engine.types import EngineSettings, Failure
from tests.support.checkpoints import edit_config, tokenizer
from tests.unit.engine.conftest import blocking, device, ids

QWEN_06B = {
    "model_type": "qwen3", "vocab_size": 151669, "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    "hidden_act": "silu", "attention_bias": False, "rope_scaling": None, "use_sliding_window": False,
}  # fmt: skip


@pytest.fixture
def copy(checkpoints: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of one's own, to be damaged."""

    def make(shape: str = "tied", **how: object) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(checkpoints(shape, **how), folder)
        return folder

    return make


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replaces tensors, with `_` for `.` in their names; None removes."""
    file = folder / "model.safetensors"
    stored = load_file(file)
    for name, tensor in tensors.items():
        (full,) = [key for key in stored if key.replace(".", "_") == name]
        if tensor is None:
            del stored[full]
        else:
            stored[full] = tensor
    save_file(stored, file, metadata={"format": "pt"})


def load(folder: Path, engine: type[EmbedEngine] | type[RerankEngine] = EmbedEngine, **settings: object) -> object:
    return engine.load(EngineSettings(str(folder), **{"max_tokens": 64, "threads": 1, **settings}))  # type: ignore[arg-type]


def tensors(folder: Path) -> Tensors:
    return Qwen3Family(Checkpoint.open(str(folder))).tensors


def test_config_as_either_generation_of_transformers_writes_it() -> None:
    old = ModelConfig.parse(QWEN_06B)
    new = {key: value for key, value in QWEN_06B.items() if key not in ("rope_theta", "rope_scaling")}
    new |= {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "layer_types": ["full_attention"] * 28,
    }
    assert ModelConfig.parse(new) == old
    assert old.head_dim == 128
    assert old.rope_theta == 1e6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"rope_theta": None}, "rope_theta"),
    ],
)
def test_a_config_we_would_get_wrong_is_refused(change: dict[str, object], says: str) -> None:
    raw = {key: value for key, value in {**QWEN_06B, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=says):
        ModelConfig.parse(raw)


def test_names_with_and_without_prefix_sharded_or_not_are_one_model(checkpoints: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    text = [ids(rng, 30)]
    folders = [
        checkpoints("tied"),
        checkpoints("tied", bare=True),
        checkpoints("tied", max_shard_size="100KB"),
    ]
    assert len(list(folders[2].glob("*.safetensors"))) > 1
    rows = [(model := device(folder)).launch(model.pack(text))() for folder in folders]
    assert all(np.array_equal(row, rows[0]) for row in rows)
    assert len({tensors(folder).digest() for folder in folders}) == 1


def test_the_digest_tells_one_changed_weight(copy: Callable[..., Path]) -> None:
    folder = copy()
    before = tensors(folder).digest()
    weight = load_file(folder / "model.safetensors")["model.norm.weight"]
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    change(folder, model_norm_weight=weight)
    assert tensors(folder).digest() != before


@pytest.mark.parametrize(
    "tensor",
    ["embed_tokens.weight", "norm.weight", "layers.2.self_attn.q_norm.weight", "layers.0.mlp.down_proj.weight"],
)
def test_a_missing_or_zero_or_misshapen_tensor_is_named(copy: Callable[..., Path], tensor: str) -> None:
    folder, name = copy(), "model_" + tensor.replace(".", "_")
    whole = load_file(folder / "model.safetensors")["model." + tensor]
    change(folder, **{name: torch.zeros_like(whole)})
    with pytest.raises(CheckpointError, match=f"{tensor} is all zero"):
        load(folder)
    change(folder, **{name: whole[:-1].clone()})
    with pytest.raises(CheckpointError, match=rf"{tensor} is \[.*config.json says"):
        load(folder)
    change(folder, **{name: whole.to(torch.int8)})
    with pytest.raises(CheckpointError, match="quantised"):
        load(folder)
    change(folder, **{name: None})
    with pytest.raises(CheckpointError, match=f"{tensor} is missing"):
        load(folder)


def test_the_untied_head_is_needed_by_rerankers_only(copy: Callable[..., Path]) -> None:
    folder = copy("untied")
    change(folder, lm_head_weight=torch.zeros_like(load_file(folder / "model.safetensors")["lm_head.weight"]))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is all zero"):
        load(folder, RerankEngine, max_tokens=256)
    change(folder, lm_head_weight=None)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load(folder, RerankEngine, max_tokens=256)
    load(folder, EmbedEngine)


def test_weights_that_give_nan_do_not_start(copy: Callable[..., Path]) -> None:
    folder = copy()
    weight = load_file(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    weight[0, 0] = float("nan")
    change(folder, model_layers_1_mlp_up_proj_weight=weight)
    with pytest.raises(CheckpointError, match="self-check failed"):
        load(folder)


def test_files_that_are_missing_or_broken_are_named(copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy()
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors is missing"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load(folder)
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nowhere" / "at" / "all")


def test_settings_that_cannot_be_served_are_named(copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"max_tokens": 5000}, "this model takes 64 to 4096"),
        ({"device": "tpu"}, "device 'tpu' is unknown"),
        ({"device": "cuda"}, "no CUDA device"),
        ({"dtype": "int4"}, "dtype 'int4' is unknown"),
    ]
    for settings, says in wrong:
        with pytest.raises(CheckpointError, match=says):
            load(folder, **settings)
    edit_config(folder, vocab_size=100)
    with pytest.raises(CheckpointError, match="vocabulary only 100"):
        load(folder)


def test_the_fingerprint_follows_what_decides_the_numbers(copy: Callable[..., Path]) -> None:
    folder = copy()
    base = load(folder).info  # type: ignore[attr-defined]
    assert load(folder).info == base  # type: ignore[attr-defined]
    assert load(folder, revision="v2").info.fingerprint != base.fingerprint  # type: ignore[attr-defined]
    assert load(folder, dtype="bfloat16").info.fingerprint != base.fingerprint  # type: ignore[attr-defined]
    if has_int8():
        int8 = load(folder, dtype="int8").info  # type: ignore[attr-defined]
        assert (int8.dtype, int8.fingerprint != base.fingerprint) == ("int8", True)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    changed = load(folder).info  # type: ignore[attr-defined]
    assert changed.fingerprint != base.fingerprint
    assert changed.weights_digest == base.weights_digest
    assert (base.name, base.dimensions, base.dtype, base.device) == ("copy", 64, "float32", "cpu")


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize(("content", "says"), [(LFS, "is a Git LFS pointer.*git lfs pull"), ("", "is empty")])
def test_what_lies_in_the_place_of_a_file_is_named(
    copy: Callable[..., Path], file: str, content: str, says: str
) -> None:
    folder = copy()
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=f"copy: {file} {says}"):
        load(folder)


@pytest.mark.parametrize("value", ["[]", "7", "null", '"qwen3"'])
def test_a_config_that_is_no_object_is_named(copy: Callable[..., Path], value: str) -> None:
    folder = copy()
    (folder / "config.json").write_text(value)
    with pytest.raises(CheckpointError, match=r"config\.json holds a \w+, not a JSON object"):
        load(folder)


def test_a_file_that_was_cut_short_is_named(copy: Callable[..., Path]) -> None:
    folder = copy()
    whole = (folder / "model.safetensors").read_bytes()
    for length in (len(whole) // 2, 100, 4):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"model\.safetensors cannot be read.* ends after {length} bytes"):
            load(folder)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("pytorch_model.bin", "pickled weights are not read"),
        ("consolidated.00.pth", "pickled weights are not read"),
        ("model-Q4_K_M.gguf", "GGUF is not served"),
        ("adapter_config.json", "belongs to an adapter.*merge"),
        ("adapter_model.safetensors", "belongs to an adapter.*merge"),
    ],
)
def test_a_folder_of_another_format_says_which(copy: Callable[..., Path], file: str, says: str) -> None:
    folder = copy()
    (folder / "model.safetensors").rename(folder / file)
    with pytest.raises(CheckpointError, match=f"{file}.*{says}|{file}: {says}"):
        load(folder)
    for other in ("config.json", "tokenizer.json"):
        (folder / other).unlink()
    with pytest.raises(CheckpointError, match=f"{file}.*{says}|{file}: {says}"):
        load(folder)


def test_a_folder_around_the_model_is_told_from_it(copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy()
    with pytest.raises(CheckpointError, match=r"config\.json is missing, but copy has one: give that folder"):
        load(tmp_path)
    (tmp_path / "hub" / "snapshots").mkdir(parents=True)
    folder.rename(tmp_path / "hub" / "snapshots" / "abc")
    with pytest.raises(CheckpointError, match=r"but snapshots/abc has one: give that folder"):
        load(tmp_path / "hub")
    with pytest.raises(CheckpointError, match="is a file; give the folder that holds it"):
        load(tmp_path / "hub" / "snapshots" / "abc" / "model.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(copy: Callable[..., Path]) -> None:
    folder = copy()
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        (folder / file).chmod(0)
        with pytest.raises(CheckpointError, match=f"{file} may not be read by this user"):
            load(folder)


def test_what_the_system_refuses_is_named(copy: Callable[..., Path]) -> None:
    folder = copy()
    with pytest.raises(CheckpointError, match=r"copy: config\.json may not be read by this user"):  # noqa: SIM117
        with readable(folder / "config.json"):
            raise PermissionError
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"copy: config\.json cannot be read \(Is a directory\)"):
        load(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_starts_and_fails_only_the_text_that_needs_them(
    checkpoints: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    words = tokenizer()
    rows = words.token_to_id("<think>")
    folder = checkpoints("tied", bare=True, vocab_size=rows)
    with caplog.at_level(logging.WARNING, "winnow.engine"):
        engine = load(folder)
    assert f"tokenizer.json has {words.get_vocab_size()} tokens, the model only {rows}" in caplog.text
    with blocking(engine) as embed:  # type: ignore[arg-type]
        good, bad, other = embed("embed", ["gravity", "a <think> b", "gravity"]).items
    assert isinstance(bad, Failure)
    assert "texts[1]: holds '<think>'" in str(bad.error)
    assert np.array_equal(good.vector, other.vector)


IDENTITY: dict[str, Any] = {
    "name": "n", "revision": "r", "config": ModelConfig.parse(QWEN_06B), "weights": "w", "tokenizer": "t",
    "head": "h", "dtype": "d", "template": "v",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in IDENTITY if name != "config"])
def test_each_part_of_the_identity_changes_the_fingerprint(name: str) -> None:
    assert fingerprint(**{**IDENTITY, name: "other"}) != fingerprint(**IDENTITY)


@pytest.mark.parametrize("name", [field.name for field in fields(ModelConfig)])
def test_each_value_of_the_config_changes_the_fingerprint(name: str) -> None:
    config = ModelConfig.parse(QWEN_06B)
    value = getattr(config, name)
    changed = replace(config, **{name: not value if isinstance(value, bool) else value * 2})
    assert fingerprint(**{**IDENTITY, "config": changed}) != fingerprint(**IDENTITY)


def test_the_fingerprint_follows_the_config_and_not_how_it_is_written(copy: Callable[..., Path]) -> None:
    folder = copy()
    base = load(folder).info  # type: ignore[attr-defined]
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    harmless = dict(reversed(config.items())) | {"rope_theta": rope["rope_theta"], "transformers_version": "4.51.0"}
    (folder / "config.json").write_text(json.dumps(harmless, indent=7))
    assert load(folder).info == base  # type: ignore[attr-defined]
    prints = {base.fingerprint}
    for changes in [{"rope_theta": 10_000.0}, {"rms_norm_eps": 1e-5}]:
        edit_config(folder, **{**harmless, **changes})
        prints.add(load(folder).info.fingerprint)  # type: ignore[attr-defined]
    edit_config(folder, **harmless)
    prints.add(load(folder, RerankEngine, max_tokens=256).info.fingerprint)  # type: ignore[attr-defined]
    assert len(prints) == 4
