"""The models whose weights are random in the benches, by name: what their config.json says.

Speed depends on the shapes and not on the values of the weights.
"""

from collections.abc import Mapping
from typing import Any, Literal

Role = Literal["embed", "rerank"]

ENCODERS = ("bert", "roberta", "xlm-roberta")
"""The `model_type` of models in which a token sees the whole text. A reranker of theirs is a sequence classifier."""

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
# config.json of sentence-transformers/all-MiniLM-L6-v2.
_MINILM: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
# config.json of BAAI/bge-m3, but for the vocabulary of 250,002: a token's row is looked up in the same time.
_BGE_M3: dict[str, Any] = _MINILM | {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 8194,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "type_vocab_size": 1,
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
    "minilm": _MINILM,
    "bge-m3": _BGE_M3,
    "bge-reranker": _BGE_M3  # BAAI/bge-reranker-v2-m3
    | {"architectures": ["XLMRobertaForSequenceClassification"]}
    | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    # For tests of the benchmarks.
    "tiny": _06B
    | {"hidden_size": 64, "intermediate_size": 192, "head_dim": 32, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
}


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether this config.json is of a model in which a token sees the whole text."""
    return config.get("model_type") in ENCODERS


def classifies(config: Mapping[str, Any]) -> bool:
    """Whether this config.json is of an encoder that scores pairs of texts."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or [])


def roles(config: Mapping[str, Any]) -> tuple[Role, ...]:
    """What a random model is measured as. Qwen3's weights are both embedder and reranker."""
    if not is_encoder(config):
        return "embed", "rerank"
    return ("rerank",) if classifies(config) else ("embed",)
