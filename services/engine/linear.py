"""Matrix products with fixed weights, in the format that is fastest and still exact on this device."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

Linear = Callable[[torch.Tensor], torch.Tensor]
"""`x [T, in] -> [T, out]`."""

LinearFormat = Callable[[torch.Tensor], Linear]
"""Turns a weight `[out, in]` as stored in the checkpoint into a Linear."""

MAX_RELATIVE_ERROR = 1e-5
_PROBE_S, _PAIRS = 0.1, 500  # at most, per number of rows


def dense(device: torch.device, dtype: torch.dtype) -> LinearFormat:
    """Plain weights of `dtype` on `device`."""

    def build(weight: torch.Tensor) -> Linear:
        weight = weight.to(device, dtype).contiguous()
        return lambda x: F.linear(x, weight)

    return build


fp32 = dense(torch.device("cpu"), torch.float32)


def packed_fp16(weight: torch.Tensor) -> Linear:
    """FBGEMM: fp16 weights, fp32 activations and accumulation. Half the memory traffic of fp32.

    bf16 values are exact in fp16 while they stay in its normal range; a tensor for which they do not stays fp32.
    """
    exact = weight.float()
    if (exact.half().float() - exact).norm() > MAX_RELATIVE_ERROR / 10 * exact.norm():
        return fp32(weight)
    packed = torch.ops.quantized.linear_prepack_fp16(exact, None)
    return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, packed)


def choose_cpu_format(sample: torch.Tensor) -> LinearFormat:
    """`packed_fp16` if a probe on `sample` (a weight of the model) finds it faster and within 1e-5, else `fp32`."""
    if sample.dtype == torch.float32 or "fbgemm" not in torch.backends.quantized.supported_engines:
        return fp32
    torch.backends.quantized.engine = "fbgemm"
    sample = sample[:2048]
    plain, packed = fp32(sample), packed_fp16(sample)
    gain = 0.0
    for rows in (12, 512):  # a token of a short query counts as much as one of a full step
        x = torch.randn(rows, sample.shape[1], generator=torch.Generator().manual_seed(rows))
        expected = plain(x)
        if (packed(x) - expected).norm() > MAX_RELATIVE_ERROR * expected.norm():
            return fp32
        # Side by side, so that other load on the machine meets both.
        pairs = [(_seconds(plain, x), _seconds(packed, x)) for _ in range(3)]
        while len(pairs) < _PAIRS and sum(map(sum, pairs)) < _PROBE_S:
            pairs.append((_seconds(plain, x), _seconds(packed, x)))
        gain += (min(p[0] for p in pairs) - min(p[1] for p in pairs)) / rows
    return packed_fp16 if gain > 0 else fp32


def _seconds(linear: Linear, x: torch.Tensor) -> float:
    start = time.perf_counter()
    linear(x)
    return time.perf_counter() - start
