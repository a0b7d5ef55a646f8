"""Creates model folders that all subjects can load, with the same weights and the same tokenizer.

A *shape* such as `0.6b` gets random weights from a fixed seed, which are written once to `.cache/bench`: speed does not
depend on the values. A folder or hub id is used unchanged. If it lacks the files of sentence-transformers, a folder
with these files and links to the others is created.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors

from bench.machine import ROOT
from services.engine.host import cpus
from services.engine.models.qwen3.prompts import (
    DEFAULT_INSTRUCTION,
    EMBED_END,
    EMBED_QUERY,
    RERANK_PREFIX,
    RERANK_SUFFIX,
)

Role = Literal["embed", "rerank"]
CACHE = ROOT / ".cache" / "bench"
MODELS = ROOT / "models"
_SEED = 20250605
_BLOCK = 1 << 22  # weights

# config.json of Qwen/Qwen3-Embedding-0.6B, which Qwen/Qwen3-Reranker-0.6B shares.
_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 151669,
}
SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": _06B,
    # The pairs of 4B and 8B likewise; only the larger one's head is a tensor of its own.
    "4b": _06B
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_hidden_layers": 36}
    | {"max_position_embeddings": 40960},
    "8b": _06B
    | {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_hidden_layers": 36}
    | {"max_position_embeddings": 40960, "tie_word_embeddings": False},
    # For tests of the benchmarks.
    "tiny": _06B
    | {"hidden_size": 64, "intermediate_size": 192, "head_dim": 32, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
}
# The reranker's prompt as a chat template, as sentence-transformers requires.
_CHAT_TEMPLATE = (
    "{%- set ns = namespace(query='', document='', task='" + DEFAULT_INSTRUCTION + "') -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'query' -%}{%- set ns.query = message.content -%}{%- endif -%}"
    "{%- if message.role == 'document' -%}{%- set ns.document = message.content -%}{%- endif -%}"
    "{%- endfor -%}"
    "{{- " + json.dumps(RERANK_PREFIX) + " -}}"
    "{{- '<Instruct>: ' + ns.task + '\\n<Query>: ' + ns.query + '\\n<Document>: ' + ns.document -}}"
    "{{- " + json.dumps(RERANK_SUFFIX) + " -}}"
)


class ModelMissingError(Exception):
    """The model does not exist on this machine. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The model to measure: a shape, `nano`, a folder or a hub id."""

    model: str
    layers: int | None = None
    tokenizer: Path | None = None
    cache: Path = CACHE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the model."""
    parser.add_argument(
        "--model",
        default="0.6b",
        help="0.6b, 4b, 8b (random weights), 0.6b-4layers, nano, a folder or a hub id (default 0.6b)",
    )
    parser.add_argument("--layers", type=int, help="number of layers of a random model, for a quick run")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json for a random model (default nano)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for random models (default .cache/bench)")


def choice(arguments: argparse.Namespace) -> Choice:
    """What the arguments of `add_arguments` say."""
    return named(arguments.model, arguments.layers, arguments.tokenizer, arguments.cache)


def named(model: str, layers: int | None = None, tokenizer: Path | None = None, cache: Path = CACHE) -> Choice:
    """The model of a name such as `0.6b-4layers`; `layers` goes before what the name says."""
    shape, _, suffix = model.partition("-")
    if shape in SHAPES and suffix.endswith("layers") and suffix.removesuffix("layers").isdigit():
        return Choice(shape, layers or int(suffix.removesuffix("layers")), tokenizer, cache)
    return Choice(model, layers, tokenizer, cache)


def prepare(chosen: Choice, role: Role) -> Path:
    """A folder with the checkpoint and the files of sentence-transformers. Raises ModelMissingError."""
    if chosen.model in SHAPES:
        return _random(chosen, role)
    if chosen.model == "nano":
        folder = MODELS / f"nano-{role}"
    elif Path(chosen.model).is_dir():
        folder = Path(chosen.model).resolve()
    else:
        folder = _download(chosen.model)
    if not (folder / "config.json").is_file():
        raise ModelMissingError(f"{folder} contains no checkpoint")
    return folder if (folder / "modules.json").is_file() else _linked(folder, role, chosen.cache)


def _random(chosen: Choice, role: Role) -> Path:
    cache = chosen.cache
    source = (chosen.tokenizer or MODELS / f"nano-{role}") / "tokenizer.json"
    if not source.is_file():
        raise ModelMissingError(f"{source} is missing; give a folder that has one with --tokenizer")
    config = dict(SHAPES[chosen.model])
    config["num_hidden_layers"] = layers = chosen.layers or config["num_hidden_layers"]
    tokenizer = _tokenizer(source, role)
    if tokenizer.get_vocab_size() > config["vocab_size"]:
        raise ModelMissingError(f"{source} has more tokens than the model's {config['vocab_size']}")
    text = tokenizer.to_str()
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    weights = cache / f"{chosen.model}-{layers}layers.safetensors"
    if not weights.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        part = weights.with_suffix(f".{os.getpid()}")
        save_file(dict(_weights(config)), part, metadata={"format": "pt"})
        part.rename(weights)  # whole or not at all, also when interrupted
    folder = cache / f"{chosen.model}-{layers}layers-{role}-{digest}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text(text)
    _link(weights, folder / "model.safetensors")
    _complete(folder, role, tokenizer)
    return folder


def _weights(config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a Qwen3, bf16, as transformers initialises it: normal(0, 0.02), norms 1."""
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    seeds = count(_SEED)

    def normal(*shape: int) -> torch.Tensor:
        """Drawn in blocks of which each has a seed of its own: in parallel, and the same on any number of cores."""
        weight = torch.empty(shape, dtype=torch.bfloat16)
        blocks = torch.split(weight.view(-1), _BLOCK)
        with ThreadPoolExecutor(cpus()) as pool:
            list(pool.map(draw, blocks, islice(seeds, len(blocks))))
        return weight

    def draw(block: torch.Tensor, seed: int) -> None:
        block.normal_(0.0, float(config["initializer_range"]), generator=torch.Generator().manual_seed(seed))

    def ones(size: int) -> torch.Tensor:
        return torch.ones(size, dtype=torch.bfloat16)

    yield "model.embed_tokens.weight", normal(config["vocab_size"], width)
    yield "model.norm.weight", ones(width)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", ones(width)
        yield f"{layer}.post_attention_layernorm.weight", ones(width)
        yield f"{layer}.self_attn.q_norm.weight", ones(head)
        yield f"{layer}.self_attn.k_norm.weight", ones(head)
        yield f"{layer}.self_attn.q_proj.weight", normal(query, width)
        yield f"{layer}.self_attn.k_proj.weight", normal(key, width)
        yield f"{layer}.self_attn.v_proj.weight", normal(key, width)
        yield f"{layer}.self_attn.o_proj.weight", normal(width, query)
        yield f"{layer}.mlp.gate_proj.weight", normal(inner, width)
        yield f"{layer}.mlp.up_proj.weight", normal(inner, width)
        yield f"{layer}.mlp.down_proj.weight", normal(width, inner)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", normal(config["vocab_size"], width)


def _tokenizer(file: Path, role: Role) -> Tokenizer:
    """The embedder's tokenizer appends `<|endoftext|>`, the reranker's appends nothing."""
    tokenizer = Tokenizer.from_file(str(file))
    plain = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    if role == "embed":
        end = (EMBED_END, tokenizer.token_to_id(EMBED_END))
        template = processors.TemplateProcessing(single=f"$A {EMBED_END}", pair=None, special_tokens=[end])
        tokenizer.post_processor = processors.Sequence([plain, template])
    else:
        tokenizer.post_processor = plain
    return tokenizer


def _linked(folder: Path, role: Role, cache: Path) -> Path:
    """A folder with links to all files of `folder`, and the files of sentence-transformers."""
    view = cache / f"{folder.name}-{role}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file():
            _link(file, view / file.name)
    _complete(view, role, Tokenizer.from_file(str(folder / "tokenizer.json")))
    return view


def _complete(folder: Path, role: Role, tokenizer: Tokenizer) -> None:
    """Adds the files that transformers and sentence-transformers read in addition to the checkpoint."""
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 131072,
            "pad_token": EMBED_END,
            "eos_token": "<|im_end|>",
            "clean_up_tokenization_spaces": False,
        },
    )
    _write(folder / "sentence_bert_config.json", _TRANSFORMER[role])
    kinds = (
        ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling",
         "sentence_transformers.models.Normalize"]
        if role == "embed"
        else ["sentence_transformers.base.modules.Transformer",
              "sentence_transformers.cross_encoder.modules.LogitScore"]
    )  # fmt: skip
    names = ["", *(f"{index}_{kind.rpartition('.')[2]}" for index, kind in enumerate(kinds) if index)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (kind, path) in enumerate(zip(kinds, names, strict=True))
    ]
    for path in names[1:]:
        (folder / path).mkdir(exist_ok=True)
    if role == "embed":
        width = json.loads((folder / "config.json").read_text())["hidden_size"]
        pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": False,
                   "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}  # fmt: skip
        _write(folder / "1_Pooling" / "config.json", pooling)
        prompts = {"query": EMBED_QUERY.format(instruction=DEFAULT_INSTRUCTION), "document": ""}
        _write(folder / "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "cosine"})
    else:
        ids = {"true_token_id": tokenizer.token_to_id("yes"), "false_token_id": tokenizer.token_to_id("no")}
        _write(folder / "1_LogitScore" / "config.json", ids)
        _write(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
        _replace(folder / "chat_template.jinja", _CHAT_TEMPLATE)
    # Written last: its presence marks the folder as complete.
    _write(folder / "modules.json", modules)


_TRANSFORMER: dict[Role, dict[str, Any]] = {
    "embed": {"max_seq_length": 32768, "do_lower_case": False},
    "rerank": {
        "transformer_task": "text-generation",
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "logits"},
            "message": {"method": "forward", "method_output_name": "logits", "format": "flat"},
        },
        "module_output_name": "causal_logits",
    },
}


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except Exception as error:
        raise ModelMissingError(f"{model}: no such folder, and the hub gave {type(error).__name__}") from error


def _link(target: Path, link: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())


def _write(path: Path, value: object) -> None:
    _replace(path, json.dumps(value, indent=2))


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # never write through a link
    path.write_text(text)
