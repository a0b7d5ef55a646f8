"""The `config.json` of a BERT, RoBERTa or XLM-RoBERTa as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.engine.errors import CheckpointError
from services.engine.models.base import Config
from services.engine.models.encoder.elementwise import ACTIVATIONS

_STEMS = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
_PADDING = 1  # transformers' default of pad_token_id for the RoBERTas
CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig(Config):
    """Shapes and constants. Field names follow Hugging Face, but `max_position_embeddings` counts what a text may use:
    the RoBERTas begin at a row that depends on their padding token."""

    model_type: str
    classifies: bool  # a cross-encoder, by its architecture
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float
    activation: str  # a key of ACTIVATIONS
    type_vocab_size: int
    first_position: int

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "EncoderConfig":
        """Raises CheckpointError for anything this engine would get wrong."""
        kind = str(raw["model_type"])
        classifies = _classifies(raw, kind)
        for name, unsupported in [
            ("is_decoder", bool(raw.get("is_decoder"))),
            ("add_cross_attention", bool(raw.get("add_cross_attention"))),
            ("pruned_heads", bool(raw.get("pruned_heads"))),
            ("position_embedding_type", (raw.get("position_embedding_type") or "absolute") != "absolute"),
            ("hidden_act", raw.get("hidden_act", "gelu") not in ACTIVATIONS),
        ]:
            if unsupported:
                raise CheckpointError(f"config.json: {name} = {raw[name]!r} is not supported")
        try:
            padding = raw.get("pad_token_id")
            first = 0 if kind == "bert" else 1 + int(_PADDING if padding is None else padding)
            config = cls(
                model_type=kind,
                classifies=classifies,
                vocab_size=int(raw["vocab_size"]),
                hidden_size=int(raw["hidden_size"]),
                intermediate_size=int(raw["intermediate_size"]),
                num_hidden_layers=int(raw["num_hidden_layers"]),
                num_attention_heads=int(raw["num_attention_heads"]),
                max_position_embeddings=int(raw["max_position_embeddings"]) - first,
                layer_norm_eps=float(raw.get("layer_norm_eps", 1e-12)),
                activation=str(raw.get("hidden_act", "gelu")),
                type_vocab_size=int(raw.get("type_vocab_size", 2)),
                first_position=first,
            )
        except KeyError as missing:
            raise CheckpointError(f"config.json: {missing.args[0]} is missing") from None
        except (TypeError, ValueError) as wrong:
            raise CheckpointError(f"config.json: {wrong}") from None
        if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
            raise CheckpointError("config.json: hidden_size is not a multiple of num_attention_heads")
        if min(config.num_hidden_layers, config.type_vocab_size, config.max_position_embeddings) < 1:
            raise CheckpointError("config.json: layers, token types and positions must each be at least 1")
        return config


def _classifies(raw: Mapping[str, Any], kind: str) -> bool:
    """Whether it is a cross-encoder of one score. Raises CheckpointError for any other architecture."""
    stem = _STEMS[kind]
    named = raw.get("architectures") or ()
    architectures = [named] if isinstance(named, str) else list(named)
    for architecture in architectures:
        if architecture not in (f"{stem}Model", f"{stem}ForMaskedLM", f"{stem}{CLASSIFIER}"):
            raise CheckpointError(
                f"config.json: architectures = [{architecture!r}] is not served, only {stem}Model, {stem}ForMaskedLM"
                f" and {stem}{CLASSIFIER}"
            )
    if f"{stem}{CLASSIFIER}" not in architectures:
        return False
    labels = raw.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else raw.get("num_labels", 2)
    if count != 1:
        raise CheckpointError(
            f"config.json: the classifier has {count} labels; only rerankers with one, a score, are served"
        )
    return True
