"""Random weights, as transformers initialises them: normal(0, 0.02), norms 1, biases 0. The same on every machine."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import Any

import torch

from bench.shapes import classifies, is_encoder
from services.engine.host import cpus

Tensors = Iterator[tuple[str, torch.Tensor]]

_SEED = 20250605
_BLOCK = 1 << 22  # weights


def tensors(config: Mapping[str, Any]) -> Tensors:
    """Every tensor of the checkpoint that config.json describes, in its `torch_dtype`."""
    drawn = _Drawn(getattr(torch, config["torch_dtype"]), float(config["initializer_range"]))
    return _encoder(config, drawn) if is_encoder(config) else _decoder(config, drawn)


class _Drawn:
    """Tensors in the order in which they are asked for."""

    def __init__(self, dtype: torch.dtype, deviation: float) -> None:
        self._dtype, self._deviation, self._seeds = dtype, deviation, count(_SEED)

    def normal(self, *shape: int) -> torch.Tensor:
        """Drawn in blocks of which each has a seed of its own: in parallel, and the same on any number of cores."""
        weight = torch.empty(shape, dtype=self._dtype)
        blocks = torch.split(weight.view(-1), _BLOCK)
        with ThreadPoolExecutor(cpus()) as pool:
            list(pool.map(self._draw, blocks, islice(self._seeds, len(blocks))))
        return weight

    def ones(self, size: int) -> torch.Tensor:
        return torch.ones(size, dtype=self._dtype)

    def linear(self, name: str, outputs: int, inputs: int) -> Tensors:
        """With a bias."""
        yield f"{name}.weight", self.normal(outputs, inputs)
        yield f"{name}.bias", torch.zeros(outputs, dtype=self._dtype)

    def layer_norm(self, name: str, size: int) -> Tensors:
        yield f"{name}.weight", self.ones(size)
        yield f"{name}.bias", torch.zeros(size, dtype=self._dtype)

    def _draw(self, block: torch.Tensor, seed: int) -> None:
        block.normal_(0.0, self._deviation, generator=torch.Generator().manual_seed(seed))


def _decoder(config: Mapping[str, Any], drawn: _Drawn) -> Tensors:
    """Qwen3."""
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", drawn.normal(config["vocab_size"], width)
    yield "model.norm.weight", drawn.ones(width)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", drawn.ones(width)
        yield f"{layer}.post_attention_layernorm.weight", drawn.ones(width)
        yield f"{layer}.self_attn.q_norm.weight", drawn.ones(head)
        yield f"{layer}.self_attn.k_norm.weight", drawn.ones(head)
        yield f"{layer}.self_attn.q_proj.weight", drawn.normal(query, width)
        yield f"{layer}.self_attn.k_proj.weight", drawn.normal(key, width)
        yield f"{layer}.self_attn.v_proj.weight", drawn.normal(key, width)
        yield f"{layer}.self_attn.o_proj.weight", drawn.normal(width, query)
        yield f"{layer}.mlp.gate_proj.weight", drawn.normal(inner, width)
        yield f"{layer}.mlp.up_proj.weight", drawn.normal(inner, width)
        yield f"{layer}.mlp.down_proj.weight", drawn.normal(width, inner)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", drawn.normal(config["vocab_size"], width)


def _encoder(config: Mapping[str, Any], drawn: _Drawn) -> Tensors:
    """BERT and XLM-RoBERTa, which differ in the prefix of a classifier's names alone."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    root = "roberta." if classifies(config) else ""
    tables = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    for table, size in tables.items():
        yield f"{root}embeddings.{table}_embeddings.weight", drawn.normal(config[size], width)
    yield from drawn.layer_norm(f"{root}embeddings.LayerNorm", width)
    for index in range(config["num_hidden_layers"]):
        layer = f"{root}encoder.layer.{index}"
        for part in ("query", "key", "value"):
            yield from drawn.linear(f"{layer}.attention.self.{part}", width, width)
        yield from drawn.linear(f"{layer}.attention.output.dense", width, width)
        yield from drawn.layer_norm(f"{layer}.attention.output.LayerNorm", width)
        yield from drawn.linear(f"{layer}.intermediate.dense", inner, width)
        yield from drawn.linear(f"{layer}.output.dense", width, inner)
        yield from drawn.layer_norm(f"{layer}.output.LayerNorm", width)
    if not root:
        yield from drawn.linear("pooler.dense", width, width)  # no one reads it, but the published files have it
        return
    yield from drawn.linear("classifier.dense", width, width)
    yield from drawn.linear("classifier.out_proj", len(config["id2label"]), width)
