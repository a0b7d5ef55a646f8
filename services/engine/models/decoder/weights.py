"""A checkpoint's tensors in the layout the forward pass wants."""

import re
from dataclasses import dataclass

import torch

from services.engine.checkpoint.tensors import Tensors, Usage
from services.engine.layers.linear import Linear, LinearFormat
from services.engine.models.decoder.config import DecoderConfig

_LAYER = r"(?:input_layernorm|post_attention_layernorm|self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight"
_QK_NORM, _QKV_BIAS = r"self_attn\.[qk]_norm\.weight", r"self_attn\.[qkv]_proj\.bias"
_USED = frozenset({"embed_tokens.weight", "norm.weight"})
_DERIVED = re.compile(r"(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
# Why a tensor that is not used changes the results, by its name; the first that fits.
_REASONS = (
    (
        r"^score\.|classifier|classification|pooler",
        "is a classification head, which the architecture in config.json has not",
    ),
    (r"\.bias$", "is a bias, which a {family} model does not have; such a model is not served"),
    (r"", "is not part of a {family} model, and would be ignored; such a model is not served"),
)


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One decoder layer. Query and key heads are normalised and rotated together."""

    projections: tuple[Linear, ...]  # (qkv,); in the last layer (q, kv), since few rows need a query there
    norms: tuple[torch.Tensor | None, ...]  # (qk,); in the last layer (q, k): [heads, D], if the family has such norms
    o: Linear
    mlp_norm: torch.Tensor  # before the feed-forward part
    gate_up: Linear
    down: Linear
    next_norm: torch.Tensor  # before the next layer; after the last one, the final norm


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model."""

    embedding: torch.Tensor  # [vocabulary, hidden], as stored: rows are looked up, then widened
    first_norm: torch.Tensor
    layers: tuple[DecoderLayer, ...]
    rotation: torch.Tensor  # [max_tokens, 1, D/2, 2] fp32: cos and sin by position


def usage(config: DecoderConfig, *heads: str) -> Usage:
    """Which tensors a checkpoint may hold. `heads`: those of its heads, by name."""
    kinds = [_LAYER, *([_QK_NORM] if config.qk_norm else []), *([_QKV_BIAS] if config.qkv_bias else [])]
    layers = re.compile(rf"layers\.(\d+)\.(?:{'|'.join(kinds)})")

    def unused(name: str) -> str | None:
        if name in _USED or name in heads:
            return None
        if layer := layers.fullmatch(name):
            count = config.num_hidden_layers
            return None if int(layer[1]) < count else f"lies beyond the {count} layers that config.json names"
        reason = next(reason for pattern, reason in _REASONS if re.search(pattern, name))
        return reason.format(family=config.family)

    return Usage(_DERIVED, unused)


def read(
    config: DecoderConfig,
    tensors: Tensors,
    device: torch.device,
    dtype: torch.dtype,
    attention: LinearFormat,
    mlp: LinearFormat,
    max_tokens: int,
) -> Weights:
    """Reads every tensor once. `attention` and `mlp`: the formats of a layer's two parts.

    Raises CheckpointError for what is missing, misshapen or all zero, by name.
    """
    c = config
    heads = {"q": c.num_attention_heads, "k": c.num_key_value_heads, "v": c.num_key_value_heads}

    def vector(name: str, size: int) -> torch.Tensor:
        return tensors(name, (size,)).to(device, dtype)

    def layer(index: int) -> DecoderLayer:
        at = f"layers.{index}."
        last = index == c.num_hidden_layers - 1

        def weight(name: str, rows: int, columns: int) -> torch.Tensor:
            return tensors(f"{at}{name}_proj.weight", (rows, columns))

        def stacked(names: str, kind: str, *columns: int) -> torch.Tensor:
            """Weights or biases below each other, of keys and values for "kv"."""
            parts = {
                name: tensors(f"{at}self_attn.{name}_proj.{kind}", (heads[name] * c.head_dim, *columns))
                for name in names
            }
            return torch.cat([part if name == "v" else interleave(part, c.head_dim) for name, part in parts.items()])

        def projection(names: str) -> Linear:
            return attention(stacked(names, "weight", c.hidden_size), stacked(names, "bias") if c.qkv_bias else None)

        def norms(names: str) -> torch.Tensor | None:
            if not c.qk_norm:
                return None
            each = {name: vector(f"{at}self_attn.{name}_norm.weight", c.head_dim) for name in names}
            return torch.cat([interleave(norm, c.head_dim).expand(heads[name], -1) for name, norm in each.items()])

        gate, up = (weight(f"mlp.{name}", c.intermediate_size, c.hidden_size) for name in ("gate", "up"))
        return DecoderLayer(
            projections=tuple(map(projection, ("q", "kv") if last else ("qkv",))),
            norms=tuple(map(norms, ("q", "k") if last else ("qk",))),
            o=attention(weight("self_attn.o", c.hidden_size, heads["q"] * c.head_dim), None),
            mlp_norm=vector(f"{at}post_attention_layernorm.weight", c.hidden_size),
            gate_up=mlp(torch.cat([gate, up]), None),
            down=mlp(weight("mlp.down", c.hidden_size, c.intermediate_size), None),
            next_norm=vector("norm.weight" if last else f"layers.{index + 1}.input_layernorm.weight", c.hidden_size),
        )

    return Weights(
        embedding=tensors("embed_tokens.weight", (c.vocab_size, c.hidden_size)).to(device),
        first_norm=vector("layers.0.input_layernorm.weight", c.hidden_size),
        layers=tuple(layer(i) for i in range(c.num_hidden_layers)),
        rotation=rotation_table(c, max_tokens).to(device),
    )


def rotation_table(config: DecoderConfig, length: int) -> torch.Tensor:
    """RoPE (arXiv 2104.09864): cos and sin of position · theta^(-2j/D), fp32 `[length, 1, D/2, 2]`."""
    # In fp32, as the reference does: at position 30,000 an angle rounded otherwise is off by a thousandth.
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), 1.0 / config.rope_theta**exponents)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).unsqueeze(1)


def interleave(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorders each head's rows from (re 0…D/2, im 0…D/2) to (re, im) pairs, so that RoPE is a complex product.

    Queries and keys are reordered alike, which leaves their dot products as they were.
    """
    return x.view(-1, 2, head_dim // 2, *x.shape[1:]).transpose(1, 2).flatten(0, 2)
