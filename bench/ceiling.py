"""Measures the matrix products of a model on this machine. They are an upper bound for the speed of any engine."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from services.engine.layers.linear import Linear, LinearFormat, dense, packed_fp16
from services.engine.models.qwen3.config import ModelConfig

_LAYERS = 4  # distinct weights, so that caches hold no more of them than of a model's
_ROWS = {"cpu": (256, 512, 1024), "cuda": (8192, 16384)}
_SECONDS = {"cpu": 1.0, "cuda": 0.2}


def config_of(folder: Path) -> ModelConfig:
    """The shapes of a checkpoint."""
    return ModelConfig.parse(json.loads((folder / "config.json").read_text()))


def weights(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """`[out, in]` of a layer's four products."""
    query = config.num_attention_heads * config.head_dim
    both = 2 * config.num_key_value_heads * config.head_dim
    return {
        "qkv": (query + both, config.hidden_size),
        "o": (config.hidden_size, query),
        "gate_up": (2 * config.intermediate_size, config.hidden_size),
        "down": (config.hidden_size, config.intermediate_size),
    }


def linear_flops(config: ModelConfig, tokens: int, ends: int) -> float:
    """Multiplications and additions with weights for `tokens` computed tokens of `ends` texts.

    The last layer needs keys and values of all tokens, but everything else for each text's last token only.
    """
    layer = sum(2 * rows * columns for rows, columns in weights(config).values())
    keys_values = 2 * 2 * config.num_key_value_heads * config.head_dim * config.hidden_size
    return float((config.num_hidden_layers - 1) * layer * tokens + keys_values * tokens + (layer - keys_values) * ends)


def attention_flops(config: ModelConfig, lengths: Sequence[int]) -> float:
    """FLOPs of causal attention over texts of these lengths, with nothing shared: 4 x width per (query, key) pair."""
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return 4.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs


class Ceiling(Protocol):
    """The upper bound. A call does `flops` of work, `rows` tokens at a time."""

    name: str
    rows: int
    flops: float

    def __call__(self) -> None:
        """Does the work and waits for its end."""


class Products:
    """Only the products of a few layers, in the number format and step size that are fastest on this machine."""

    name = "gemm"

    def __init__(self, config: ModelConfig, device: str) -> None:
        self._device = torch.device(device)
        self._flops_per_row = float(sum(2 * rows * columns for rows, columns in weights(config).values())) * _LAYERS
        probes = [
            (self._time(layers, inputs) / count, name, layers, inputs)
            for name, linear in _formats(self._device).items()
            for layers in [self._build(config, linear)]
            for count in _ROWS[device]
            for inputs in [self._inputs(config, count)]
        ]
        seconds, self.format, self._layers, self._x = min(probes, key=lambda probe: probe[0])
        self.rows = len(self._x["qkv"])
        self._repeats = max(1, round(_SECONDS[device] / (seconds * self.rows)))
        self.flops = self._flops_per_row * self.rows * self._repeats

    def __call__(self) -> None:
        """Does `flops` of work."""
        for _ in range(self._repeats):
            self._once(self._layers, self._x)
        self._wait()

    def _build(self, config: ModelConfig, linear: LinearFormat) -> list[dict[str, Linear]]:
        random = torch.Generator().manual_seed(0)
        return [
            {name: linear((torch.randn(shape, generator=random) * 0.02).bfloat16()) for name, shape in shapes.items()}
            for shapes in [weights(config)] * _LAYERS
        ]

    def _inputs(self, config: ModelConfig, rows: int) -> dict[str, torch.Tensor]:
        dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        random = torch.Generator().manual_seed(1)
        return {
            name: torch.randn(rows, columns, generator=random).to(self._device, dtype)
            for name, (_, columns) in weights(config).items()
        }

    @torch.inference_mode()
    def _once(self, layers: list[dict[str, Linear]], inputs: dict[str, torch.Tensor]) -> None:
        for layer in layers:
            for name, linear in layer.items():
                linear(inputs[name])

    def _time(self, layers: list[dict[str, Linear]], inputs: dict[str, torch.Tensor]) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            self._once(layers, inputs)
            self._wait()
            best = min(best, time.perf_counter() - start)
        return best

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def ceiling(config: ModelConfig, device: str) -> Ceiling:
    """On a CPU, products with the model's shapes; on CUDA, one large product."""
    return Products(config, device) if device == "cpu" else LargeProduct()


class LargeProduct:
    """A large square bf16 product: the matrix rate that a CUDA card achieves in practice."""

    name = "roofline"

    def __init__(self, size: int = 8192, repeats: int = 20) -> None:
        self.rows = size
        self._a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
        self._b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
        self._repeats = repeats
        self.flops = 2.0 * size**3 * repeats

    def __call__(self) -> None:
        """Does `flops` of work."""
        for _ in range(self._repeats):
            torch.mm(self._a, self._b)
        torch.cuda.synchronize()


def _formats(device: torch.device) -> dict[str, LinearFormat]:
    if device.type == "cuda":
        return {"bf16": dense(device, torch.bfloat16)}
    formats = {"fp32": dense(device, torch.float32)}
    if "fbgemm" in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = "fbgemm"
        formats["fp16-packed"] = packed_fp16
    return formats
