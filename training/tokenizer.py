"""A small byte-level BPE that splits text exactly as Qwen3's tokenizer does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from training import prompts

SIZE = 16384
# Qwen3's own pattern (its tokenizer.json).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# In Qwen3 the first three are special; the thinking marks are added tokens that are not.
ADDED = ((END, True), (START, True), (STOP, True), ("<think>", False), ("</think>", False))


def train(texts: Iterable[str], size: int = SIZE) -> Tokenizer:
    """Learns `size` entries in total. Added tokens are last, as in Qwen3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(ADDED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    tokenizer.train_from_iterator(_with_prompts(texts), trainer)
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in ADDED])
    for word in ("yes", "no"):
        if len(tokenizer.encode(word, add_special_tokens=False).ids) != 1:
            raise RuntimeError(f"{word!r} is not one token")
    return tokenizer


def _with_prompts(texts: Iterable[str]) -> Iterable[str]:
    """The texts, and the models' fixed prompts, repeated so often that each of their words becomes one token."""
    yield from texts
    head = prompts.RERANK_PREFIX.replace(START, "").replace(STOP, "")
    tail = prompts.RERANK_SUFFIX.replace(START, "").replace(STOP, "").replace("<think>", "").replace("</think>", "")
    for _ in range(2000):
        yield head
        yield prompts.rerank_head("what") + " "
        yield prompts.embed_query("what")
        yield tail
        yield from ("yes", "no", "\n", "\n\n", "user\n", "system\n", "assistant\n")


def token(tokenizer: Tokenizer, text: str) -> int:
    """The id of a text that is one token."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise ValueError(f"{text!r} is not one token but {ids}")
    return ids[0]


def for_embedding(tokenizer: Tokenizer) -> Tokenizer:
    """A copy with a post-processor that appends `<|endoftext|>`, the token that the embedder pools at."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = processors.Sequence(
        [
            processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
            processors.TemplateProcessing(
                single=f"$A {END}",
                pair=f"$A {END} $B:1 {END}:1",
                special_tokens=[(END, copy.token_to_id(END))],
            ),
        ]
    )
    return copy


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and a tokenizer_config.json with the same entries as Qwen3's."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added: dict[str, dict[str, Any]] = {}
    for text, special in ADDED:
        added[str(tokenizer.token_to_id(text))] = {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": special,
        }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [START, STOP],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": STOP,
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": END,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
