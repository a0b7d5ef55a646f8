"""An encoder's checkpoint on a device, in the formats that are fastest there."""

from collections.abc import Callable

import torch

from services.engine import host
from services.engine.checkpoint.tensors import Tensors
from services.engine.layers.linear import LinearFormat, choose_cpu_format, dense, packed_16_bits, packed_int8
from services.engine.layers.pooling import Pooling
from services.engine.models.encoder.config import EncoderConfig
from services.engine.models.encoder.elementwise import Elementwise
from services.engine.models.encoder.forward import Encoder
from services.engine.models.encoder.weights import read

# Rows of a feed-forward layer computed at once: bounds memory for long texts, and stays in cache on the CPU.
_MLP_ROWS = {"cpu": 1024, "cuda": 16384}
# Share of the free memory that the weights may fill when they are kept in two formats.
_ROOM = 0.5


def prepare(
    config: EncoderConfig,
    tensors: Tensors,
    sample: Callable[[], torch.Tensor],
    pooling: Pooling,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[int], Encoder]:
    """Chooses formats, for fp32 on the CPU by a probe on `sample()`. The result reads the weights, for texts of so many
    tokens."""
    linear: LinearFormat
    inputs = torch.float32 if dtype == torch.int8 else dtype
    if device.type != "cpu":
        linear, residual = dense(device, dtype), dtype
    elif inputs == torch.float32:
        room = 3 * tensors.size < _ROOM * host.free_memory()
        linear, residual = choose_cpu_format(sample(), room_for_both=room), torch.float32
    else:
        linear, residual = packed_16_bits(dtype), torch.float32
    # What attention's products read has a few values so large that 127 steps are too few for the others.
    mlp = packed_int8 if dtype == torch.int8 else linear
    elementwise = Elementwise(config.layer_norm_eps, config.activation, residual, inputs)

    def build(max_tokens: int) -> Encoder:
        all_rows = pooling is Pooling.MEAN
        weights = read(config, tensors, device, residual, linear, mlp, max_tokens, all_rows=all_rows)
        return Encoder(config, weights, elementwise, pooling, _MLP_ROWS[device.type])

    return build
