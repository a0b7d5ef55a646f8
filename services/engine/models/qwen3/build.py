"""A Qwen3 checkpoint on a device, in the formats that are fastest there."""

from collections.abc import Callable

import torch

from services.engine import host
from services.engine.checkpoint.tensors import Tensors
from services.engine.layers.elementwise import Elementwise, Fused, InPlace
from services.engine.layers.linear import choose_cpu_format, dense
from services.engine.models.qwen3.config import ModelConfig
from services.engine.models.qwen3.forward import Qwen3
from services.engine.models.qwen3.weights import read

# Rows of a feed-forward layer computed at once: bounds memory for long texts, and stays in cache on the CPU.
_MLP_ROWS = {"cpu": 1024, "cuda": 16384}
# Share of the free memory that the weights may fill when they are kept in two formats.
_ROOM = 0.5


def prepare(config: ModelConfig, tensors: Tensors, device: torch.device, dtype: torch.dtype) -> Callable[[int], Qwen3]:
    """Chooses formats, on the CPU by a probe. The result reads the weights, for texts of so many tokens."""
    linear = dense(device, dtype)
    elementwise: Elementwise = Fused(config.rms_norm_eps)
    if device.type == "cpu" and dtype == torch.float32:
        sample = tensors("layers.0.mlp.up_proj.weight", (config.intermediate_size, config.hidden_size))
        linear = choose_cpu_format(sample, room_for_both=3 * tensors.size < _ROOM * host.free_memory())
        elementwise = InPlace(config.rms_norm_eps)

    def build(max_tokens: int) -> Qwen3:
        weights = read(config, tensors, device, dtype, linear, max_tokens)
        return Qwen3(config, weights, elementwise, dtype, _MLP_ROWS[device.type])

    return build
