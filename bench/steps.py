"""Steps of a model on a device, without a queue before them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from bench.shapes import Role
from bench.texts import Writer
from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.devices.base import Device
from services.engine.devices.cpu import Cpu
from services.engine.devices.cuda import Cuda
from services.engine.models.qwen3.prompts import DEFAULT_INSTRUCTION, RERANK_BODY, RERANK_PREFIX, RERANK_SUFFIX
from services.engine.models.registry import FAMILIES, family_of
from services.engine.text import tokenizer as engine_tokenizer
from services.engine.types import Ids, Vector

_MAX_TOKENS = 4096


class Steps:
    """A checkpoint on a device. Belongs to the thread that made it."""

    def __init__(self, folder: Path, role: Role, device: str, dtype: torch.dtype) -> None:
        checkpoint, place = Checkpoint.open(str(folder)), torch.device(device)
        family = family_of(checkpoint, FAMILIES)
        model = family.prepare(place, dtype)(_MAX_TOKENS)
        words = engine_tokenizer.Tokenizer(checkpoint.tokenizer_file, family.config.vocab_size)
        _, head = family.head(words, place, embeds=role == "embed")
        self.device: Device = Cuda(model, head, place) if device == "cuda" else Cpu(model, head)

    def __call__(self, sequences: Sequence[Ids]) -> Vector:
        """A row for each sequence."""
        return self.device.launch(self.device.pack(list(sequences)))()

    def optimize(self) -> None:
        """What the engine does in the background: compiles, captures graphs."""
        self.device.optimize(lambda job: job())


def documents(folder: Path, count: int, seed: int = 4) -> list[Ids]:
    """Tokens of texts of mixed lengths."""
    writer = Writer(seed)
    return _tokens(folder, [writer.of_words(int(n)) for n in writer.lognormal(count, 67, sigma=0.8, low=3, high=1000)])


def pairs(folder: Path, count: int, seed: int = 5) -> list[Ids]:
    """Tokens of one query with `count` passages: what they share is half of each."""
    writer = Writer(seed)
    head = RERANK_PREFIX + RERANK_BODY.format(instruction=DEFAULT_INSTRUCTION, query=writer.of_words(6))
    lengths = writer.lognormal(count, 54, sigma=0.42, low=10, high=200)
    return _tokens(folder, [f"{head} {writer.of_words(int(length))}{RERANK_SUFFIX}" for length in lengths])


def _tokens(folder: Path, texts: Sequence[str]) -> list[Ids]:
    encodings = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch_fast(list(texts))
    return [np.array(encoding.ids[:_MAX_TOKENS], np.int32) for encoding in encodings]
