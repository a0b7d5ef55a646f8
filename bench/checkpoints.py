"""Creates model folders that all subjects can load, with the same weights and the same tokenizer.

A *shape* such as `0.6b` gets random weights, which are written once to `.cache/bench`. A folder or hub id is used
unchanged. If it is a Qwen3 that lacks the files of sentence-transformers, a folder with these files and links to the
others is created.
"""

import argparse
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer, processors

from bench import vocabulary
from bench.folders import complete
from bench.machine import ROOT
from bench.shapes import SHAPES, Role, is_encoder, roles
from bench.weights import tensors
from services.engine.models.qwen3.prompts import EMBED_END

CACHE = ROOT / ".cache" / "bench"
MODELS = ROOT / "models"
DEFAULT = "0.6b"


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
        default=DEFAULT,
        help="0.6b, 4b, 8b, minilm, bge-m3, bge-reranker (random weights), 0.6b-4layers, nano, a folder or a hub id "
        f"(default {DEFAULT})",
    )
    parser.add_argument("--layers", type=int, help="number of layers of a random model, for a quick run")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json for a random model")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for random models (default .cache/bench)")


def choice(arguments: argparse.Namespace) -> Choice:
    """What the arguments of `add_arguments` say."""
    return named(arguments.model, arguments.layers, arguments.tokenizer, arguments.cache)


def named(model: str, layers: int | None = None, tokenizer: Path | None = None, cache: Path = CACHE) -> Choice:
    """The model of a name such as `0.6b-4layers`; `layers` goes before what the name says."""
    shape, _, suffix = model.rpartition("-")
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
    config = json.loads((folder / "config.json").read_text())
    # Without modules sentence-transformers uses an encoder as its config.json says.
    return folder if (folder / "modules.json").is_file() or is_encoder(config) else _linked(folder, role, chosen.cache)


def _random(chosen: Choice, role: Role) -> Path:
    cache = chosen.cache
    config = dict(SHAPES[chosen.model])
    if role not in roles(config):
        raise ModelMissingError(f"{chosen.model} is for `python -m bench {roles(config)[0]}`")
    config["num_hidden_layers"] = layers = chosen.layers or config["num_hidden_layers"]
    tokenizer = _tokenizer(chosen, config, role)
    if tokenizer.get_vocab_size() > config["vocab_size"]:
        raise ModelMissingError(f"the tokenizer has more tokens than the model's {config['vocab_size']}")
    text = tokenizer.to_str()
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    weights = cache / f"{chosen.model}-{layers}layers.safetensors"
    if not weights.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        part = weights.with_suffix(f".{os.getpid()}")
        save_file(dict(tensors(config)), part, metadata={"format": "pt"})
        part.rename(weights)  # whole or not at all, also when interrupted
    folder = cache / f"{chosen.model}-{layers}layers-{role}-{digest}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text(text)
    _link(weights, folder / "model.safetensors")
    complete(folder, role, tokenizer)
    return folder


def _tokenizer(chosen: Choice, config: dict[str, Any], role: Role) -> Tokenizer:
    """Of `--tokenizer`, or by default nano's for Qwen3 and one of the benches' own words for encoders."""
    if is_encoder(config) and chosen.tokenizer is None:
        return vocabulary.tokenizer(config["model_type"])
    source = (chosen.tokenizer or MODELS / f"nano-{role}") / "tokenizer.json"
    if not source.is_file():
        raise ModelMissingError(f"{source} is missing; give a folder that has one with --tokenizer")
    tokenizer = Tokenizer.from_file(str(source))
    if not is_encoder(config):
        tokenizer.post_processor = _post_processor(tokenizer, role)
    return tokenizer


def _post_processor(tokenizer: Tokenizer, role: Role) -> Any:
    """Qwen3-Embedding's appends `<|endoftext|>`, Qwen3-Reranker's appends nothing."""
    plain = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    if role == "rerank":
        return plain
    end = (EMBED_END, tokenizer.token_to_id(EMBED_END))
    template = processors.TemplateProcessing(single=f"$A {EMBED_END}", pair=None, special_tokens=[end])
    return processors.Sequence([plain, template])


def _linked(folder: Path, role: Role, cache: Path) -> Path:
    """A folder with links to all files of `folder`, and the files of sentence-transformers."""
    view = cache / f"{folder.name}-{role}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file():
            _link(file, view / file.name)
    complete(view, role, Tokenizer.from_file(str(folder / "tokenizer.json")))
    return view


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except Exception as error:
        raise ModelMissingError(f"{model}: no such folder, and the hub gave {type(error).__name__}") from error


def _link(target: Path, link: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())
