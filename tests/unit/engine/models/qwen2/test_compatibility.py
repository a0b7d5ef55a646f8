"""A Qwen2 whose mask or end is not known, or that is another model, is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import CheckpointError
from services.engine.layers.pooling import Pooling
from services.engine.models.qwen2.family import Qwen2Family
from services.engine.types import EngineSettings
from tests.support import qwen2
from tests.support.checkpoints import edit_config

Edit = Callable[[Path], None]
AUTO_MAP = {"AutoModel": "modeling_qwen.Qwen2Model"}


def config(**changes: Any) -> Edit:
    return lambda folder: edit_config(folder, **changes)


def changed(name: str, **changes: Any) -> Edit:
    return lambda folder: qwen2.edit_json(folder / name, **changes)


def adds(name: str, tensor: torch.Tensor) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(load_file(file) | {name: tensor}, file, metadata={"format": "pt"})

    return edit


def without_end(folder: Path) -> None:
    changed("tokenizer.json", post_processor=None)(folder)


def both(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for change in edits:
            change(folder)

    return edit


def listed(*kinds: str) -> Edit:
    """modules.json with only modules of these kinds."""

    def edit(folder: Path) -> None:
        file = folder / "modules.json"
        modules = json.loads(file.read_text())
        file.write_text(json.dumps([module for module in modules if module["type"].rpartition(".")[2] in kinds]))

    return edit


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen2.save(tmp_path_factory.mktemp("saved"), causal=False)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def load(folder: Path, engine: type[EmbedEngine] | type[RerankEngine] = EmbedEngine) -> Any:
    return engine.load(EngineSettings(str(folder), max_tokens=256, threads=1))


def refused(folder: Path, says: list[str], engine: type[EmbedEngine] | type[RerankEngine] = EmbedEngine) -> None:
    with pytest.raises(CheckpointError) as error:
        load(folder, engine)
    assert [part for part in says if part not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        config(auto_map=AUTO_MAP),  # not needed once config.json says what a token sees
        config(is_causal=True),
        config(architectures=["Qwen2ForCausalLM"]),
        config(architectures=None),
        both(changed("1_Pooling/config.json", pooling_mode="mean"), without_end),
        adds("lm_head.weight", torch.ones(1)),  # not read
    ],
)
def test_what_says_all_is_served(folder: Path, change: Edit) -> None:
    change(folder)
    load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (config(is_causal=None), ["config.json", '"is_causal": false']),
        (config(is_causal=None, auto_map=AUTO_MAP), ['"is_causal": false', "auto_map"]),
        (config(is_causal="no"), ['"is_causal": false']),
        (config(is_causal=True, use_bidirectional_attention=True), ["what a token sees", '"is_causal": false']),
        (config(use_sliding_window=True), ["use_sliding_window"]),
        (config(layer_types=["full_attention", "sliding_attention"]), ["layer_types"]),
        (config(architectures=["Qwen2ForSequenceClassification"]), ["Qwen2ForSequenceClassification", "only Qwen2"]),
        (config(architectures=["Qwen2MoeModel"]), ["Qwen2MoeModel"]),
        (config(quantization_config={"quant_method": "gptq", "bits": 4}), ["quantised", "GPTQ, 4 bits"]),
        (without_end, ["tokenizer.json", "adds no token", "last token"]),
        (
            both(
                without_end,
                changed("1_Pooling/config.json", pooling_mode="mean"),
                changed("tokenizer_config.json", add_eos_token=True),
            ),
            ["tokenizer.json", "add_eos_token"],
        ),
        (changed("tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B", None]}), ["tokenizer_config.json"]),
        (changed("sentence_bert_config.json", do_lower_case=True), ["sentence_bert_config.json", "do_lower_case"]),
        (changed("1_Pooling/config.json", pooling_mode="cls"), ["1_Pooling/config.json", "cls"]),
        (changed("1_Pooling/config.json", pooling_mode="max"), ["1_Pooling/config.json", "max"]),
        (listed(), ["modules.json"]),
        (listed("Transformer", "Normalize"), ["modules.json"]),
        (adds("layers.0.self_attn.o_proj.bias", torch.ones(64)), ["o_proj.bias", "a Qwen2 model does not have"]),
        (adds("layers.0.self_attn.q_norm.weight", torch.ones(16)), ["q_norm.weight", "not part of a Qwen2"]),
        (adds("score.weight", torch.ones(1, 64)), ["score.weight", "classification head"]),
        (adds("layers.9.self_attn.q_proj.bias", torch.ones(64)), ["layers.9", "3 layers"]),
    ],
)
def test_what_would_be_served_wrongly_is_refused_by_name(folder: Path, change: Edit, says: list[str]) -> None:
    change(folder)
    refused(folder, says)


def test_a_recipe_that_leaves_the_mask_open_does_not_guess_it(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "gte-Qwen2-1.5B-instruct"))
    edit_config(folder, is_causal=None)
    refused(folder, ['"is_causal": false'])
    edit_config(folder, is_causal=True)
    load(folder)


def test_the_folder_goes_before_a_recipe(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "gte-Qwen2-7B-instruct"))

    def made() -> tuple[bool, Pooling]:
        model = Qwen2Family(Checkpoint.open(str(folder))).prepare(torch.device("cpu"), torch.float32)(64)
        return model.causal, model.pooling

    edit_config(folder, is_causal=None)
    assert made() == (False, Pooling.LAST)
    edit_config(folder, is_causal=True)
    changed("1_Pooling/config.json", pooling_mode="mean")(folder)
    assert made() == (True, Pooling.MEAN)
    listed()(folder)
    assert made() == (True, Pooling.LAST)


def test_mask_pooling_and_end_count_in_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    def fingerprint() -> str:
        found: str = load(folder).info.fingerprint
        return found

    found = [fingerprint()]
    edit_config(folder, is_causal=True)
    found.append(fingerprint())
    changed("1_Pooling/config.json", pooling_mode="mean")(folder)
    found.append(fingerprint())
    edit_config(folder, auto_map=AUTO_MAP)  # decides nothing
    assert fingerprint() == found[-1]
    without_end(folder)
    found.append(fingerprint())
    assert len(set(found)) == len(found)
    one = load(folder).info.template_version
    folder = folder.rename(tmp_path / "stella_en_1.5B_v5")
    assert load(folder).info.template_version != one


def test_a_bias_that_is_missing_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["layers.1.self_attn.k_proj.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    refused(folder, ["layers.1.self_attn.k_proj.bias is missing"])


def test_it_is_no_reranker(folder: Path) -> None:
    refused(folder, ["qwen2", "embed worker"], RerankEngine)
