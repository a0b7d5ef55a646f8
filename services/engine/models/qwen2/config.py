"""A Qwen2 `config.json` as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from services.engine.errors import CheckpointError
from services.engine.models.decoder.config import DecoderConfig, architectures

_ARCHITECTURES = ("Qwen2Model", "Qwen2ForCausalLM")


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2Config(DecoderConfig):
    """Shapes and constants of a dense Qwen2."""

    family: ClassVar[str] = "Qwen2"
    qk_norm: ClassVar[bool] = False
    qkv_bias: ClassVar[bool] = True

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Qwen2Config":
        """Raises CheckpointError for anything this engine would get wrong."""
        for architecture in architectures(raw):
            if architecture not in _ARCHITECTURES:
                served = " and ".join(_ARCHITECTURES)
                raise CheckpointError(f"config.json: architectures = [{architecture!r}] is not served, only {served}")
        return cls.read(raw)
