"""A decoder on a device, in the formats that are fastest there."""

from collections.abc import Callable

import torch

from services.engine import host
from services.engine.checkpoint.tensors import Tensors
from services.engine.layers.elementwise import Elementwise, Fused, InPlace, Mixed
from services.engine.layers.linear import LinearFormat, choose_cpu_format, dense, packed_16_bits, packed_int8
from services.engine.layers.pooling import Pooling
from services.engine.models.decoder.config import DecoderConfig
from services.engine.models.decoder.forward import Decoder
from services.engine.models.decoder.weights import read

# Rows of a feed-forward layer computed at once: bounds memory for long texts, and stays in cache on the CPU.
_MLP_ROWS = {"cpu": 1024, "cuda": 16384}
# Share of the free memory that the weights may fill when they are kept in two formats.
_ROOM = 0.5


def sample(config: DecoderConfig, tensors: Tensors) -> torch.Tensor:
    """A weight like those that most of the time is spent on, `[out, in]`, as stored."""
    return tensors("layers.0.mlp.up_proj.weight", (config.intermediate_size, config.hidden_size))


def prepare(
    config: DecoderConfig,
    tensors: Tensors,
    device: torch.device,
    dtype: torch.dtype,
    *,
    causal: bool = True,
    pooling: Pooling = Pooling.LAST,
) -> Callable[[int], Decoder]:
    """Chooses formats, for fp32 on the CPU by a probe on `sample`. The result reads the weights, for texts of so many
    tokens."""
    linear: LinearFormat
    elementwise: Elementwise
    if device.type != "cpu":
        linear, elementwise = dense(device, dtype), Fused(config.rms_norm_eps, dtype)
    elif dtype in (torch.float32, torch.int8):
        room = 3 * tensors.size < _ROOM * host.free_memory()
        linear, elementwise = (
            choose_cpu_format(sample(config, tensors), room_for_both=room),
            InPlace(config.rms_norm_eps),
        )
    else:
        linear, elementwise = packed_16_bits(dtype), Mixed(config.rms_norm_eps, dtype)

    # What attention's products read has a few values so large that 127 steps are too few for the others.
    mlp = packed_int8 if dtype == torch.int8 else linear

    def build(max_tokens: int) -> Decoder:
        weights = read(config, tensors, device, elementwise.residual, linear, mlp, max_tokens)
        return Decoder(config, weights, elementwise, _MLP_ROWS[device.type], causal=causal, pooling=pooling)

    return build
