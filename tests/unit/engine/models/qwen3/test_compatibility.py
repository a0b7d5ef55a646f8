"""A folder that is not what we expect is refused by name; what the official models hold is served."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Fast
from tokenizers import processors

from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import CheckpointError
from services.engine.load import load as load_model
from services.engine.types import EngineSettings
from tests.support.checkpoints import appends, edit_config, tokenizer

QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
TASK = "Given a web search query, retrieve relevant passages that answer the query"
Edit = Callable[[Path], None]


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def json_edit(name: str, **changes: Any) -> Edit:
    """Changes keys of a JSON file, which may not be there yet."""

    def edit(folder: Path) -> None:
        file = folder / name
        write(file, {**(json.loads(file.read_text()) if file.exists() else {}), **changes})

    return edit


def settings(**changes: Any) -> Edit:
    """Changes what sentence-transformers keeps of a whole model."""
    return json_edit("config_sentence_transformers.json", **changes)


def pooling(**changes: Any) -> Edit:
    """Changes the pooling module."""
    return json_edit("1_Pooling/config.json", **changes)


def adds(name: str, tensor: torch.Tensor) -> Edit:
    """Adds a tensor to a reranker's file; `name` without `model.`."""
    prefix = "model." if name.startswith("layers.") else ""
    return lambda folder: stored(folder, **{prefix + name: tensor})


def stored(folder: Path, **tensors: torch.Tensor) -> None:
    """Adds or replaces tensors, with `__` for `.` in their names."""
    file = folder / "model.safetensors"
    held = load_file(file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(held, file, metadata={"format": "pt"})


def table(folder: Path) -> torch.Tensor:
    """The embedding of a reranker."""
    return load_file(folder / "model.safetensors")["model.embed_tokens.weight"]


def modules(*kinds: str) -> Edit:
    """modules.json with these parts, the first in the folder itself."""

    def edit(folder: Path) -> None:
        listed = [
            {"idx": i, "name": str(i), "path": f"{i}_{kind.rpartition('.')[2]}" if i else "", "type": kind}
            for i, kind in enumerate(kinds)
        ]
        write(folder / "modules.json", listed)

    return edit


ST = "sentence_transformers.models."


@pytest.fixture
def embedder(checkpoints: Callable[..., Path], tmp_path: Path) -> Path:
    """As Qwen/Qwen3-Embedding-0.6B: a ForCausalLM by name, but without `model.` and head."""
    folder = tmp_path / "embedder"
    shutil.copytree(checkpoints("tied", bare=True), folder)
    edit_config(folder, architectures=["Qwen3ForCausalLM"], eos_token_id=151645, pad_token_id=0, sliding_window=None)
    modules(f"{ST}Transformer", f"{ST}Pooling", f"{ST}Normalize")(folder)
    others = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens"]
    pooled = {f"pooling_mode_{mode}": False for mode in others} | {
        "pooling_mode_lasttoken": True,
        "include_prompt": True,
    }
    write(folder / "1_Pooling" / "config.json", pooled)
    used = {
        "prompts": {"query": QUERY, "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write(folder / "config_sentence_transformers.json", used)
    write(folder / "generation_config.json", {"eos_token_id": 1})
    write(folder / "tokenizer_config.json", {"model_max_length": 131072, "tokenizer_class": "Qwen2Tokenizer"})
    appends(tokenizer(), "<|endoftext|>").save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def reranker(checkpoints: Callable[..., Path], tmp_path: Path) -> Path:
    """As Qwen/Qwen3-Reranker-0.6B: ForCausalLM, tensors with `model.`, a tied head."""
    folder = tmp_path / "reranker"
    shutil.copytree(checkpoints("tied"), folder)
    write(folder / "generation_config.json", {"eos_token_id": 1})
    write(folder / "tokenizer_config.json", {"model_max_length": 131072, "chat_template": "{{ messages }}"})
    words = tokenizer()
    words.post_processor = processors.ByteLevel(trim_offsets=False)
    words.save(str(folder / "tokenizer.json"))
    return folder


def cross_encoder(folder: Path, **score: int | None) -> None:
    """The files that sentence-transformers 5.4 and later want of a reranker."""
    cross = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    modules("sentence_transformers.base.modules.transformer.Transformer", cross)(folder)
    words = Fast.from_file(str(folder / "tokenizer.json"))
    ids = {"true_token_id": words.token_to_id("yes"), "false_token_id": words.token_to_id("no"), **score}
    write(folder / "1_LogitScore" / "config.json", ids)
    used = {"model_type": "CrossEncoder", "prompts": {"query": TASK}, "default_prompt_name": "query"}
    write(folder / "config_sentence_transformers.json", used)
    write(folder / "sentence_bert_config.json", {"transformer_task": "text-generation"})


def load(folder: Path, engine: type[EmbedEngine] | type[RerankEngine] = EmbedEngine) -> Any:
    return engine.load(EngineSettings(str(folder), max_tokens=256, threads=1))


def refused(folder: Path, engine: type[EmbedEngine] | type[RerankEngine], *says: str) -> None:
    with pytest.raises(CheckpointError) as error:
        load(folder, engine)
    assert [part for part in says if part not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        lambda folder: (folder / "modules.json").unlink(),
        modules(f"{ST}Transformer", f"{ST}Pooling"),  # not normalised: the direction is the same
        pooling(pooling_mode="lasttoken"),
        settings(prompts={"query": QUERY, "sts": "Instruct: Compare\nQuery:"}),
        settings(prompts={}, similarity_fn_name=None),
        settings(similarity_fn_name="dot"),
        json_edit("config.json", architectures=["Qwen3Model"]),
        json_edit("config.json", architectures=None, quantization_config=None, rope_scaling=None, is_causal=True),
        adds("rotary_emb.inv_freq", torch.ones(16)),
    ],
)
def test_embedding_models_of_the_official_layout_are_served(embedder: Path, change: Edit) -> None:
    change(embedder)
    load(embedder)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        cross_encoder,
        lambda folder: stored(folder, lm_head__weight=table(folder).clone()),
        lambda folder: write(folder / "winnow.json", {"retrieval_weight": 0.4}),
    ],
)
def test_rerankers_of_the_official_layout_are_served(reranker: Path, change: Edit) -> None:
    change(reranker)
    load(reranker, RerankEngine)


def test_an_untied_reranker_in_parts_is_served(checkpoints: Callable[..., Path]) -> None:
    load(checkpoints("untied", max_shard_size="500KB"), RerankEngine)


@pytest.mark.parametrize(("name", "engine"), [("nano-embed", EmbedEngine), ("nano-rerank", RerankEngine)])
def test_the_models_of_the_repository_are_served(name: str, engine: type[EmbedEngine] | type[RerankEngine]) -> None:
    load(Path("models") / name, engine)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (modules(f"{ST}Transformer", f"{ST}Pooling", f"{ST}Dense", f"{ST}Normalize"), ["modules.json", "Dense"]),
        (modules(f"{ST}Transformer", f"{ST}WordWeights"), ["modules.json", "WordWeights"]),
        (modules(f"{ST}Transformer", "custom_st.Mixer"), ["modules.json", "custom_st.Mixer"]),
        (lambda folder: write(folder / "modules.json", {"a": 1}), ["modules.json"]),
        (pooling(pooling_mode_mean_tokens=True, pooling_mode_lasttoken=False), ["1_Pooling", "mean"]),
        (pooling(pooling_mode_cls_token=True, pooling_mode_lasttoken=False), ["1_Pooling", "cls"]),
        (pooling(pooling_mode_mean_tokens=True), ["mean and lasttoken"]),
        (pooling(pooling_mode="mean"), ["1_Pooling", "mean"]),
        (pooling(pooling_mode_lasttoken=False), ["1_Pooling", "mean"]),  # what none means there
        (settings(prompts={"query": "query: ", "document": ""}), ["prompts.query", "'query: '"]),
        (settings(prompts={"query": QUERY + " "}), ["prompts.query"]),
        (settings(prompts={"query": ""}), ["prompts.query"]),
        (settings(prompts={"document": "passage: "}), ["prompts.document"]),
        (settings(prompts={"passage": "passage: "}), ["prompts.passage"]),
        (settings(default_prompt_name="query"), ["default_prompt_name"]),
        (settings(similarity_fn_name="manhattan"), ["similarity_fn_name", "manhattan"]),
        (settings(model_type="SparseEncoder"), ["model_type", "SparseEncoder"]),
        (json_edit("sentence_bert_config.json", do_lower_case=True), ["do_lower_case"]),
        (
            json_edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_qwen.T", None]}),
            ["tokenizer_config.json", "auto_map"],
        ),
        (lambda folder: write(folder / "winnow.json", {"retrieval_weight": 0.4}), ["winnow.json", "reranker"]),
        (lambda folder: write(folder / "quantize_config.json", {"bits": 4}), ["quantize_config.json", "quantised"]),
    ],
)
def test_another_use_of_an_embedding_model_is_refused_by_name(embedder: Path, change: Edit, says: list[str]) -> None:
    change(embedder)
    refused(embedder, EmbedEngine, *says)


@pytest.mark.parametrize("left_behind", [False, True])
def test_modules_count_without_their_list_and_from_the_part_that_holds_the_weights(
    embedder: Path, left_behind: bool, tmp_path: Path
) -> None:
    pooling(pooling_mode_mean_tokens=True)(embedder)
    if left_behind:
        (embedder / "modules.json").unlink()
        refused(embedder, EmbedEngine, "1_Pooling", "mean")
        return
    listed = json.loads((embedder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    shutil.move(embedder, tmp_path / "0_Transformer")
    (tmp_path / "0_Transformer" / "modules.json").unlink()
    shutil.move(tmp_path / "0_Transformer" / "1_Pooling", tmp_path / "1_Pooling")
    write(tmp_path / "modules.json", listed)
    refused(tmp_path / "0_Transformer", EmbedEngine, "1_Pooling", "mean")
    refused(tmp_path, EmbedEngine, "config.json is missing", "0_Transformer")


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([], "adds no token"),
        (["<|im_end|>"], "not the <|endoftext|>"),
        (["<|endoftext|>", "<|endoftext|>"], "not the <|endoftext|>"),
    ],
)
def test_a_tokenizer_that_ends_texts_otherwise_is_refused(embedder: Path, tokens: list[str], says: str) -> None:
    words = tokenizer()
    if tokens:
        appends(words, *tokens)
    else:
        words.post_processor = processors.ByteLevel(trim_offsets=False)
    words.save(str(embedder / "tokenizer.json"))
    refused(embedder, EmbedEngine, "post_processor", says)


def test_a_tokenizer_without_a_post_processor_is_refused_if_the_folder_tells_its_use(
    embedder: Path, checkpoints: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer().save(str(embedder / "tokenizer.json"))
    refused(embedder, EmbedEngine, "post_processor", "adds no token")
    with caplog.at_level(logging.WARNING, "winnow.engine"):
        load(checkpoints("tied", bare=True))
    assert "no post_processor" in caplog.text


def test_a_rerankers_tokenizer_may_not_put_other_tokens_around_its_prompt(reranker: Path) -> None:
    appends(tokenizer(), "<|im_end|>").save(str(reranker / "tokenizer.json"))
    refused(reranker, RerankEngine, "post_processor")


def test_embedder_and_reranker_are_not_swapped(embedder: Path, reranker: Path) -> None:
    refused(embedder, RerankEngine, "modules.json", "embedding model")
    refused(reranker, EmbedEngine, "post_processor")
    for name in ("modules.json", "config_sentence_transformers.json"):
        (embedder / name).unlink()
    shutil.rmtree(embedder / "1_Pooling")
    refused(embedder, RerankEngine, "Qwen3Model", "embedding model")
    edit_config(embedder, architectures=["Qwen3Model"])
    refused(embedder, RerankEngine, "architectures", "embedding model")
    cross_encoder(reranker)
    appends(tokenizer(), "<|endoftext|>").save(str(reranker / "tokenizer.json"))
    refused(reranker, EmbedEngine, "model_type", "CrossEncoder")


def test_a_reranker_that_scores_by_other_words_is_refused(reranker: Path, caplog: pytest.LogCaptureFixture) -> None:
    cross_encoder(reranker, false_token_id=None)
    refused(reranker, RerankEngine, "1_LogitScore", "'yes' over 'no'")
    cross_encoder(reranker, true_token_id=7)
    refused(reranker, RerankEngine, "1_LogitScore")
    cross_encoder(reranker)
    settings(prompts={"query": "Is it about cats?"})(reranker)
    with caplog.at_level(logging.WARNING, "winnow.engine"):
        load(reranker, RerankEngine)
    assert "default instruction is 'Is it about cats?'" in caplog.text


def test_a_tied_head_that_was_stored_with_other_values_is_refused_for_rerankers(reranker: Path) -> None:
    stored(reranker, lm_head__weight=table(reranker) + 0.1)
    refused(reranker, RerankEngine, "tie_word_embeddings", "lm_head.weight")
    edit_config(reranker, tie_word_embeddings=False)
    load(reranker, RerankEngine)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            ["quantization_config", "FP8"],
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantised", "GPTQ, 4 bits"]),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, ["AWQ, 4 bits"]),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, ["bitsandbytes, 4 bits"]),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, ["bitsandbytes, 8 bits"]),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, ["compressed-tensors"]),
        ({"quantization_config": "fp8"}, ["fp8"]),
        ({"compression_config": {"quantization_method": "compressed-tensors"}}, ["compression_config"]),
        ({"auto_map": {"AutoModel": "modeling.Own"}}, ["auto_map", "modeling.Own"]),
        ({"is_causal": False}, ["is_causal"]),
        ({"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        ({"architectures": ["JinaForRanking"]}, ["architectures", "JinaForRanking"]),
        ({"architectures": ["Qwen3ForTokenClassification"]}, ["Qwen3ForTokenClassification", "is not served, only"]),
        ({"architectures": "Qwen3MoeForCausalLM"}, ["Qwen3MoeForCausalLM"]),
        ({"num_experts": 8}, ["num_experts"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, ["rope_parameters", "yarn"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, ["rope_parameters"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["rope_scaling", "yarn"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"num_attention_heads": 0}, ["num_attention_heads"]),
    ],
)
@pytest.mark.parametrize("engine", [EmbedEngine, RerankEngine])
def test_a_config_of_another_model_is_refused_by_name(
    embedder: Path,
    reranker: Path,
    engine: type[EmbedEngine] | type[RerankEngine],
    changes: dict[str, Any],
    says: list[str],
) -> None:
    folder = embedder if engine is EmbedEngine else reranker
    edit_config(folder, **changes)
    refused(folder, engine, *says)


def fp8(folder: Path) -> None:
    weight = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    stored(folder, model__layers__0__mlp__up_proj__weight=weight.to(torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (adds("score.weight", torch.ones(1, 64)), ["score.weight", "classification"]),
        (adds("classifier.weight", torch.ones(1, 64)), ["classifier.weight", "classification"]),
        (adds("layers.0.self_attn.q_proj.bias", torch.ones(128)), ["q_proj.bias", "bias"]),
        (adds("layers.9.mlp.up_proj.weight", torch.ones(96, 64)), ["layers.9", "3 layers"]),
        (fp8, ["up_proj.weight", "F8_E4M3", "quantised"]),
        (adds("layers.0.mlp.up_proj.weight_scale_inv", torch.ones(1, 1)), ["weight_scale_inv", "quantised"]),
        (adds("layers.0.mlp.up_proj.qweight", torch.ones(8, 8).int()), ["qweight", "quantised"]),
        (adds("layers.0.mlp.up_proj.weight.absmax", torch.ones(8)), ["absmax", "quantised"]),
        (adds("layers.0.mlp.up_proj.lora_A.weight", torch.ones(8, 64)), ["lora_A", "adapter"]),
        (adds("linear.weight", torch.ones(64, 64)), ["linear.weight", "not part of a Qwen3"]),
        (adds("norm.weight", torch.ones(64)), ["norm.weight", "twice"]),
        (lambda folder: write(folder / "adapter_config.json", {"peft_type": "LORA"}), ["adapter_config.json", "merge"]),
    ],
)
def test_a_tensor_that_would_be_passed_over_is_named(reranker: Path, change: Edit, says: list[str]) -> None:
    change(reranker)
    refused(reranker, RerankEngine, *says)


def test_a_second_file_or_a_stale_index_is_refused(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    shutil.copytree(checkpoints(), whole)
    shutil.copyfile(whole / "model.safetensors", whole / "a.safetensors")
    refused(whole, EmbedEngine, "stored twice", "a.safetensors and model.safetensors")
    shutil.copytree(checkpoints(max_shard_size="100KB"), parts)
    shutil.copyfile(whole / "model.safetensors", parts / "model.safetensors")
    refused(parts, EmbedEngine, "model.safetensors is not listed", "stale")
    (parts / "model.safetensors").unlink()
    index = parts / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    moved = dict(said["weight_map"]) | {"model.norm.weight": said["weight_map"]["model.embed_tokens.weight"]}
    index.write_text(json.dumps({"weight_map": moved}))
    refused(parts, EmbedEngine, "disagree about tensor model.norm.weight")
    index.write_text(json.dumps({"metadata": {}}))
    refused(parts, EmbedEngine, "weight_map")
    index.unlink()
    (gone, *_) = sorted(parts.glob("*.safetensors"))
    gone.unlink()
    refused(parts, EmbedEngine, f"{gone.name} is missing")


def test_the_models_own_length_bounds_texts(embedder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def limit(**settings: Any) -> int:
        options = EngineSettings(str(embedder), threads=1, **settings)
        return load_model(options, embeds=True).info.max_tokens

    assert limit() == 4096
    write(embedder / "sentence_bert_config.json", {"max_seq_length": 512})
    assert limit() == 512
    with caplog.at_level(logging.WARNING, "winnow.engine"):
        assert limit(max_tokens=1024) == 1024
    assert "made for 512" in caplog.text
