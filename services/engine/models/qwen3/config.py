"""A Qwen3 `config.json` as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from services.engine.errors import CheckpointError
from services.engine.models.decoder.config import DecoderConfig, architectures

_CLASSIFIER = "Qwen3ForSequenceClassification"
_ARCHITECTURES = ("Qwen3ForCausalLM", "Qwen3Model", _CLASSIFIER)
_SERVED = f"{', '.join(_ARCHITECTURES[:-1])} and {_CLASSIFIER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(DecoderConfig):
    """Shapes and constants of a dense Qwen3."""

    family: ClassVar[str] = "Qwen3"
    qk_norm: ClassVar[bool] = True
    qkv_bias: ClassVar[bool] = False

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "ModelConfig":
        """Reads what transformers 4 and 5 write. Raises CheckpointError for anything this engine would get wrong."""
        for name, other in (("is_causal", False), ("use_bidirectional_attention", True)):
            if raw.get(name) is other:
                raise CheckpointError(
                    f"config.json: {name} = {other!r}: the model attends in both directions; only causal ones are"
                    " served"
                )
        if raw.get("attention_bias"):
            raise CheckpointError(f"config.json: attention_bias = {raw['attention_bias']!r} is not supported")
        for architecture in architectures(raw):
            if architecture not in _ARCHITECTURES:
                raise CheckpointError(f"config.json: architectures = [{architecture!r}] is not served, only {_SERVED}")
        return cls.read(raw, head_dim=128)


def classifies(raw: Mapping[str, Any]) -> bool:
    """Whether the model has a classification head, not a language model's."""
    return _CLASSIFIER in architectures(raw)
