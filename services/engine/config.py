"""A Qwen3 `config.json` as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.engine.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and constants of a dense Qwen3. Field names follow Hugging Face."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # not hidden_size / num_attention_heads
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "ModelConfig":
        """Reads what transformers 4 and 5 write. Raises CheckpointError for anything this engine would get wrong."""
        if raw.get("model_type") != "qwen3":
            raise CheckpointError(f"config.json: model_type is {raw.get('model_type')!r}; only 'qwen3' can be served")
        _refuse(raw, "attention_bias", bool(raw.get("attention_bias")))
        _refuse(raw, "hidden_act", raw.get("hidden_act", "silu") != "silu")
        _refuse(raw, "use_sliding_window", bool(raw.get("use_sliding_window")))
        _refuse(raw, "layer_types", any(kind != "full_attention" for kind in raw.get("layer_types") or ()))
        # transformers 4: rope_theta and rope_scaling; 5: both inside rope_parameters.
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        _refuse(raw, "rope_scaling", rope.get("rope_type", rope.get("type", "default")) != "default")
        try:
            heads = int(raw["num_attention_heads"])
            config = cls(
                vocab_size=int(raw["vocab_size"]),
                hidden_size=int(raw["hidden_size"]),
                intermediate_size=int(raw["intermediate_size"]),
                num_hidden_layers=int(raw["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(raw.get("num_key_value_heads") or heads),
                head_dim=int(raw.get("head_dim") or 128),
                rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope_theta=float(rope.get("rope_theta") or raw["rope_theta"]),
                max_position_embeddings=int(raw["max_position_embeddings"]),
                tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            )
        except KeyError as missing:
            raise CheckpointError(f"config.json: {missing.args[0]} is missing") from None
        except (TypeError, ValueError) as wrong:
            raise CheckpointError(f"config.json: {wrong}") from None
        if config.num_attention_heads % config.num_key_value_heads:
            raise CheckpointError("config.json: num_attention_heads is not a multiple of num_key_value_heads")
        if config.head_dim % 2 or config.num_hidden_layers < 1:
            raise CheckpointError("config.json: head_dim must be even and num_hidden_layers at least 1")
        return config


def _refuse(raw: Mapping[str, Any], name: str, unsupported: bool) -> None:
    if unsupported:
        raise CheckpointError(f"config.json: {name} = {raw.get(name)!r} is not supported")
