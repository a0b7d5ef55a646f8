"""The shapes and constants of a dense decoder, from its `config.json`, and what of it no decoder here computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from services.engine.errors import CheckpointError
from services.engine.models.base import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(Config):
    """Field names follow Hugging Face. What its class says holds for a whole family."""

    family: ClassVar[str]  # its name, for messages
    qk_norm: ClassVar[bool]  # a norm on each query and key head
    qkv_bias: ClassVar[bool]  # biases on the projections to queries, keys and values

    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # not always hidden_size / num_attention_heads
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool

    @classmethod
    def read(cls, raw: Mapping[str, Any], *, head_dim: int | None = None, **own: Any) -> Self:
        """Reads what transformers 4 and 5 write. Raises CheckpointError for anything this engine would get wrong.

        `head_dim`: if config.json names none; None: hidden_size / num_attention_heads. `own`: a family's own fields.
        """
        for name, unsupported in [
            ("hidden_act", raw.get("hidden_act", "silu") != "silu"),
            ("use_sliding_window", bool(raw.get("use_sliding_window"))),
            ("layer_types", any(kind != "full_attention" for kind in raw.get("layer_types") or ())),
            ("num_experts", bool(raw.get("num_experts"))),
        ]:
            if unsupported:
                raise CheckpointError(f"config.json: {name} = {raw[name]!r} is not supported")
        rope = _rope(raw)
        try:
            heads = int(raw["num_attention_heads"])
            config = cls(
                vocab_size=int(raw["vocab_size"]),
                hidden_size=int(raw["hidden_size"]),
                intermediate_size=int(raw["intermediate_size"]),
                num_hidden_layers=int(raw["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(raw.get("num_key_value_heads") or heads),
                head_dim=int(raw.get("head_dim") or head_dim or int(raw["hidden_size"]) // max(1, heads)),
                rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope_theta=float(rope.get("rope_theta") or raw["rope_theta"]),
                max_position_embeddings=int(raw["max_position_embeddings"]),
                tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
                **own,
            )
        except KeyError as missing:
            raise CheckpointError(f"config.json: {missing.args[0]} is missing") from None
        except (TypeError, ValueError) as wrong:
            raise CheckpointError(f"config.json: {wrong}") from None
        if config.num_attention_heads < 1 or config.num_attention_heads % config.num_key_value_heads:
            raise CheckpointError("config.json: num_attention_heads is not a multiple of num_key_value_heads")
        if config.head_dim % 2 or config.num_hidden_layers < 1:
            raise CheckpointError("config.json: head_dim must be even and num_hidden_layers at least 1")
        return config


def architectures(raw: Mapping[str, Any]) -> list[str]:
    """The classes that config.json names."""
    named = raw.get("architectures") or ()
    return [named] if isinstance(named, str) else list(map(str, named))


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Positions. transformers 4 writes rope_theta and rope_scaling, 5 writes both into rope_parameters."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = raw.get(name) or {}
        if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
            raise CheckpointError(f"config.json: {name} = {rope!r} is not supported")
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind != "default":
            raise CheckpointError(
                f"config.json: {name} asks for {kind!r} (YaRN and its kin stretch positions), which is not supported;"
                " take it out to serve texts up to the model's own length"
            )
        for place in (rope, raw):
            if (share := place.get("partial_rotary_factor", 1)) != 1:
                raise CheckpointError(f"config.json: partial_rotary_factor = {share!r} is not supported")
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}
