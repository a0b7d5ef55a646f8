"""Tiny random Qwen3 checkpoints, saved by transformers, with a real (small) byte-level BPE tokenizer."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
# All that Qwen3's tokenizer.json adds to its vocabulary, in its order, and which of them it flags as special.
QWEN3_SPECIAL = [
    *CONTROL, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>",
    "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
QWEN3_PLAIN = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
]  # fmt: skip
# Qwen2/3's own splitting pattern.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided.",
    'Note that the answer can only be "yes" or "no". yes no yes no system user assistant',
    "Given a web search query, retrieve relevant passages that answer the query",
    "Instruct: Query: <Instruct>: <Query>: <Document>: what which where retrieve passages",
    "the capital of China is Beijing; gravity is a force that attracts two bodies towards each other",
] * 5


def tokenizer(
    special: Sequence[str] = CONTROL, plain: Sequence[str] = MARKS, corpus: Sequence[str] = CORPUS
) -> Tokenizer:
    """Qwen's normaliser, splitter and control tokens over a small vocabulary in which yes and no are single tokens.

    `special` and `plain`: the added tokens, flagged special or not.
    """
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(corpus, trainer)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return made


def appends(words: Tokenizer, *tokens: str) -> Tokenizer:
    """Lets the tokenizer add `tokens` after each text by itself, as an embedding model's adds `<|endoftext|>`."""
    ids = [(token, words.token_to_id(token)) for token in tokens]
    words.post_processor = processors.TemplateProcessing(single=["$A", *tokens], special_tokens=ids)
    return words


SHAPES: dict[str, dict[str, Any]] = {
    # 0.6B's ratios: tied head, head_dim twice hidden / heads.
    "tied": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True,
    },
    # 8B's: untied head, head_dim 128 != hidden / heads, 4 queries per key.
    "untied": {
        "hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 128, "tie_word_embeddings": False,
    },
}  # fmt: skip


def save(
    folder: Path,
    shape: str = "tied",
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    bare: bool = False,
    max_shard_size: str = "5GB",
    **overrides: Any,
) -> Path:
    """Writes a checkpoint into `folder`. `bare`: a Qwen3Model (names without `model.`, no head), as embedders have."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    words = tokenizer()
    config = Qwen3Config(
        **{
            "vocab_size": words.get_vocab_size() + 3,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "attention_bias": False,
            **SHAPES[shape],
            **overrides,
        }
    )
    model = (Qwen3Model if bare else Qwen3ForCausalLM)(config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Larger than the usual start, so that attention is far from uniform and errors show.
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2 if "norm" in name else 0.15)
    model.to(dtype)  # type: ignore[arg-type] # its decorator hides the overloads
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    words.save(str(folder / "tokenizer.json"))
    return folder


def repack(reranker: Path, folder: Path, labels: Sequence[str] = ("LABEL_0",)) -> Path:
    """Writes a reranker anew as a Qwen3ForSequenceClassification: a row of `score.weight` for each label, made of the
    rows of its language-model head for yes and no."""
    shutil.copytree(reranker, folder)
    tensors = load_file(folder / "model.safetensors")
    head = tensors.pop("lm_head.weight", tensors["model.embed_tokens.weight"])
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = {label: head[words.token_to_id(label)] for label in ("yes", "no")}
    both = [rows[label] for label in labels if label in rows]
    tensors["score.weight"] = torch.stack(both or [rows["yes"] - rows["no"]])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    named = {str(row): label for row, label in enumerate(labels)}
    edit_config(folder, architectures=["Qwen3ForSequenceClassification"], id2label=named, pad_token_id=0)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Changes keys of config.json; None removes one."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
