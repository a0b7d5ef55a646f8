"""A checkpoint's tensors in the layout the forward pass wants."""

import re
from dataclasses import dataclass

import torch

from services.engine.checkpoint.tensors import Tensors, Usage
from services.engine.layers.linear import Linear, LinearFormat
from services.engine.models.encoder.config import EncoderConfig
from services.engine.models.encoder.elementwise import Norm

# Names as in transformers, without a prefix. Some checkpoints put one more before them than their class does.
_PREFIXES = ("model.", "bert.", "roberta.")
# Names of flash-attn's BERT, in which jina-reranker-v2 is stored; queries, keys and values are one matrix there.
_SPELLINGS = {
    "emb_ln.": "embeddings.LayerNorm.",
    "encoder.layers.": "encoder.layer.",
    ".mixer.Wqkv.": ".attention.self.qkv.",
    ".mixer.out_proj.": ".attention.output.dense.",
    ".norm1.": ".attention.output.LayerNorm.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    ".norm2.": ".output.LayerNorm.",
}
_LAYER = re.compile(
    r"encoder\.layer\.(\d+)\.(?:attention\.self\.(?:query|key|value|qkv)|attention\.output\.(?:dense|LayerNorm)"
    r"|intermediate\.dense|output\.(?:dense|LayerNorm))\.(?:weight|bias)"
)
_EMBEDDINGS = re.compile(r"embeddings\.(?:(?:word|position|token_type)_embeddings\.weight|LayerNorm\.(?:weight|bias))")
# What a vector does not depend on: a table of numbers from 0 on, and heads of other tasks on the same states.
_DERIVED = re.compile(r"embeddings\.(?:position|token_type)_ids")
_HEADS = re.compile(r"(?:pooler|classifier|cls|lm_head)\..+")
# Why a tensor that is not used changes the results, by its name; the first that fits.
_REASONS = (
    (r"distance_embedding|relative|rotary", "belongs to relative positions, which are not served"),
    (r"crossattention", "belongs to a decoder; such a model is not served"),
    (r"\.(?:gamma|beta)$", "is named as in TensorFlow; save the model anew by transformers (save_pretrained)"),
)


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """One layer."""

    projections: tuple[Linear, ...]  # (qkv,); in the last layer (q, kv) if few rows need a query there
    o: Linear
    attention_norm: Norm  # of the sum after attention
    up: Linear
    down: Linear
    output_norm: Norm  # of the sum after the feed-forward part


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model."""

    embedding: torch.Tensor  # [vocabulary, hidden], as stored: rows are looked up, then widened
    places: torch.Tensor  # [types · max_tokens, hidden]: embedding of the token type plus that of the position
    norm: Norm  # of the embeddings' sum
    layers: tuple[EncoderLayer, ...]


def usage(config: EncoderConfig) -> Usage:
    """Which tensors a checkpoint may hold."""

    def unused(name: str) -> str | None:
        if _EMBEDDINGS.fullmatch(name) or _HEADS.fullmatch(name):
            return None
        if layer := _LAYER.fullmatch(name):
            count = config.num_hidden_layers
            return None if int(layer[1]) < count else f"lies beyond the {count} layers that config.json names"
        return next(
            (reason for pattern, reason in _REASONS if re.search(pattern, name)),
            f"is not part of a {config.model_type} model, and would be ignored; such a model is not served",
        )

    return Usage(_DERIVED, unused, _PREFIXES, _SPELLINGS)


def read(
    config: EncoderConfig,
    tensors: Tensors,
    device: torch.device,
    dtype: torch.dtype,
    attention: LinearFormat,
    mlp: LinearFormat,
    max_tokens: int,
    *,
    all_rows: bool,
) -> Weights:
    """Reads every tensor once. `attention` and `mlp`: the formats of a layer's two parts. `dtype`: of the residual
    stream. `all_rows`: the last layer's output is wanted for all rows.

    Raises CheckpointError for what is missing or misshapen, or a matrix of zeros, by name.
    """
    c = config

    def norm(name: str) -> Norm:
        weight = tensors(f"{name}.weight", (c.hidden_size,))
        return weight.to(device, dtype), _bias(tensors, name, c.hidden_size).to(device, dtype)

    def layer(index: int) -> EncoderLayer:
        at = f"encoder.layer.{index}"

        def both(name: str, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
            return tensors(f"{at}.{name}.weight", (rows, columns)), _bias(tensors, f"{at}.{name}", rows)

        if f"{at}.attention.self.qkv.weight" in tensors:
            whole = both("attention.self.qkv", 3 * c.hidden_size, c.hidden_size)
            parts = list(zip(*(tensor.chunk(3) for tensor in whole), strict=True))
        else:
            names = ("query", "key", "value")
            parts = [both(f"attention.self.{name}", c.hidden_size, c.hidden_size) for name in names]
        groups = [parts] if all_rows or index < c.num_hidden_layers - 1 else [parts[:1], parts[1:]]
        joint = [[torch.cat(of) for of in zip(*group, strict=True)] for group in groups]
        return EncoderLayer(
            projections=tuple(attention(weight, bias) for weight, bias in joint),
            o=attention(*both("attention.output.dense", c.hidden_size, c.hidden_size)),
            attention_norm=norm(f"{at}.attention.output.LayerNorm"),
            up=mlp(*both("intermediate.dense", c.intermediate_size, c.hidden_size)),
            down=mlp(*both("output.dense", c.hidden_size, c.intermediate_size)),
            output_norm=norm(f"{at}.output.LayerNorm"),
        )

    return Weights(
        embedding=tensors("embeddings.word_embeddings.weight", (c.vocab_size, c.hidden_size)).to(device),
        places=_places(c, tensors, max_tokens).to(device, dtype),
        norm=norm("embeddings.LayerNorm"),
        layers=tuple(map(layer, range(c.num_hidden_layers))),
    )


def _bias(tensors: Tensors, name: str, size: int) -> torch.Tensor:
    return tensors(f"{name}.bias", (size,), may_be_zero=True)


def _places(config: EncoderConfig, tensors: Tensors, max_tokens: int) -> torch.Tensor:
    """fp32 `[types · max_tokens, hidden]`. Its type's row is one of zeros in many RoBERTas."""
    c = config
    rows = c.first_position + c.max_position_embeddings
    positions = tensors("embeddings.position_embeddings.weight", (rows, c.hidden_size)).float()
    name = "embeddings.token_type_embeddings.weight"
    types = tensors(name, (c.type_vocab_size, c.hidden_size), may_be_zero=True).float()
    return (types.unsqueeze(1) + positions[c.first_position :][:max_tokens]).flatten(0, 1)
