"""A Qwen3 `config.json` as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.engine.errors import CheckpointError
from services.engine.models.base import Config

_ARCHITECTURES = ("Qwen3ForCausalLM", "Qwen3Model")
_SERVED = " and ".join(_ARCHITECTURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(Config):
    """Shapes and constants of a dense Qwen3. Field names follow Hugging Face."""

    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # not hidden_size / num_attention_heads
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "ModelConfig":
        """Reads what transformers 4 and 5 write. Raises CheckpointError for anything this engine would get wrong."""
        _refuse_foreign(raw)
        for name, unsupported in [
            ("attention_bias", bool(raw.get("attention_bias"))),
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
        if config.num_attention_heads < 1 or config.num_attention_heads % config.num_key_value_heads:
            raise CheckpointError("config.json: num_attention_heads is not a multiple of num_key_value_heads")
        if config.head_dim % 2 or config.num_hidden_layers < 1:
            raise CheckpointError("config.json: head_dim must be even and num_hidden_layers at least 1")
        return config


def _refuse_foreign(raw: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a model that is not computed as Qwen3 is, whatever its tensors are called."""
    for name in ("quantization_config", "compression_config"):
        if how := raw.get(name):
            raise CheckpointError(
                f"config.json: {name}: the weights are quantised ({_method(how)}), which is not served; give the"
                " checkpoint as it was before, in bfloat16, float16 or float32"
            )
    if code := raw.get("auto_map"):
        raise CheckpointError(f"config.json: auto_map = {code!r}: the model needs code of its own, which is never run")
    for name, other in (("is_causal", False), ("use_bidirectional_attention", True)):
        if raw.get(name) is other:
            raise CheckpointError(
                f"config.json: {name} = {other!r}: the model attends in both directions; only causal ones are served"
            )
    named = raw.get("architectures") or ()
    for architecture in [named] if isinstance(named, str) else named:
        if architecture not in _ARCHITECTURES:
            classifies = "SequenceClassification" in str(architecture)
            advice = "; give the reranker that answers yes or no (Qwen3ForCausalLM)" if classifies else ""
            raise CheckpointError(
                f"config.json: architectures = [{architecture!r}] is not served, only {_SERVED}{advice}"
            )


def _method(how: object) -> str:
    """What a quantization_config says, in words."""
    if not isinstance(how, Mapping):
        return repr(how)
    method = str(how.get("quant_method") or how.get("quantization_method") or how.get("quant_algo") or "unknown method")
    bits = 4 if how.get("load_in_4bit") else 8 if how.get("load_in_8bit") else how.get("bits")
    name = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8"}.get(method, method)
    return f"{name}, {bits} bits" if bits else name


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
