"""Matrix products with fixed weights, in the format that is fastest and still exact on this device."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

Linear = Callable[[torch.Tensor], torch.Tensor]
"""`x [T, in] -> [T, out]`."""

LinearFormat = Callable[[torch.Tensor, torch.Tensor | None], Linear]
"""Turns a weight `[out, in]` and a bias `[out]`, if there is one, as stored in the checkpoint, into a Linear."""

MAX_RELATIVE_ERROR = 1e-5
_PROBE_ROWS = (12, 1024)  # a short query, a full step
_PROBE_S, _PAIRS = 0.1, 500  # at most, per number of rows
_MANY_ROWS = 256  # from here on FBGEMM, which reads the weights again for every 100 rows or so, loses its lead
_INT8, _TINY = 127, 1e-12  # the largest step of a weight or an activation; a row of zeros is divided by this


def dense(device: torch.device, dtype: torch.dtype) -> LinearFormat:
    """Plain weights of `dtype` on `device`."""

    def build(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        weight = weight.to(device, dtype).contiguous()
        bias = None if bias is None else bias.to(device, dtype)
        return lambda x: F.linear(x, weight, bias)

    return build


fp32 = dense(torch.device("cpu"), torch.float32)


def packed_fp16(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """FBGEMM: fp16 weights, fp32 activations and accumulation. Half the memory traffic of fp32.

    bf16 values are exact in fp16 while they stay in its normal range; a tensor for which they do not stays fp32.
    """
    exact = weight.float()
    if (exact.half().float() - exact).norm() > MAX_RELATIVE_ERROR / 10 * exact.norm():
        return fp32(weight, bias)
    packed = torch.ops.quantized.linear_prepack_fp16(exact, None if bias is None else bias.float())
    return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, packed)


def packed_16_bits(dtype: torch.dtype) -> LinearFormat:
    """oneDNN on the CPU: 16-bit weights, laid out once for the processor's matrix tiles; sums in fp32."""

    def build(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), None)
        bias = None if bias is None else bias.to(dtype)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return build if supported[dtype]() else dense(torch.device("cpu"), dtype)


def packed_int8(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """oneDNN on the CPU: weights in int8 with a scale per output, activations in int8 with a scale per row; exact sums.

    A row's scale is its own, so its result does not depend on the rows beside it. fp32 in and out.
    """
    weight, bias = weight.float(), None if bias is None else bias.float()
    scales = weight.abs().amax(1).clamp_min_(_TINY) / _INT8
    packed = torch.ops.onednn.qlinear_prepack((weight / scales.unsqueeze(1)).round_().to(torch.int8), None)
    no_shift = torch.zeros(len(weight), dtype=torch.int32)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        # amax and amin are vectorised; aminmax and vector_norm(inf) take seven times as long as both.
        largest = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_()).clamp_min_(_TINY)
        steps = (x * (_INT8 / largest)).round_().to(torch.int8)
        # Only unsigned activations have a fast kernel: s + 128 has the bits of s but for the first.
        unsigned = steps.bitwise_xor_(-128).view(torch.uint8)
        y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, 128, packed, scales, no_shift, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y.mul_(largest.div_(_INT8))
        return y if bias is None else y.add_(bias)

    return multiply


def by_rows(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Both: fp16 for few rows, where reading the weights takes the time, and fp32 for many. 6 bytes a weight, not 2."""
    plain, packed = fp32(weight, bias), packed_fp16(weight, bias)
    return lambda x: (plain if len(x) >= _MANY_ROWS else packed)(x)


def choose_cpu_format(sample: torch.Tensor, *, room_for_both: bool) -> LinearFormat:
    """What a probe on `sample` (a weight of the model) finds fastest and within 1e-5, for one text and for full steps.

    If it differs for the two, `by_rows` if there is room for both copies, otherwise the format with the lower cost per
    token.
    """
    if sample.dtype == torch.float32 or "fbgemm" not in torch.backends.quantized.supported_engines:
        return fp32
    torch.backends.quantized.engine = "fbgemm"
    plain, packed = fp32(sample, None), packed_fp16(sample, None)
    gains = []
    for x in _probes(sample):
        expected = plain(x)
        if (packed(x) - expected).norm() > MAX_RELATIVE_ERROR * expected.norm():
            return fp32
        plain_s, packed_s = _fastest(plain, x, packed, x)
        gains.append((plain_s - packed_s) / len(x))
    few, many = gains
    if few > 0 > many and room_for_both:
        return by_rows
    return packed_fp16 if few + many > 0 else fp32


def has_int8() -> bool:
    """Whether `packed_int8` is there and exact: without VNNI or the like, sums of two products may saturate 16 bits."""
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    largest = torch.ones(1, 1024)
    return bool((packed_int8(largest, None)(largest) - largest.sum()).abs() < 1)


def gain(sample: torch.Tensor, dtype: torch.dtype) -> float:
    """How many times faster products in `dtype` are here than the fastest exact ones: for one text or a full step,
    whichever gains less. `sample`: a weight of the model."""
    exact = choose_cpu_format(sample, room_for_both=True)(sample, None)
    rounded = (packed_int8 if dtype == torch.int8 else packed_16_bits(dtype))(sample, None)
    inputs = torch.float32 if dtype == torch.int8 else dtype
    seconds = [_fastest(exact, x, rounded, x.to(inputs)) for x in _probes(sample)]
    return min(exact_s / rounded_s for exact_s, rounded_s in seconds)


def _probes(sample: torch.Tensor) -> list[torch.Tensor]:
    """fp32 `[rows, in]` for each number of rows."""
    return [torch.randn(n, sample.shape[1], generator=torch.Generator().manual_seed(n)) for n in _PROBE_ROWS]


def _fastest(a: Linear, x: torch.Tensor, b: Linear, y: torch.Tensor) -> tuple[float, float]:
    """The least seconds of a(x) and of b(y), taken side by side, so that other load on the machine meets both."""
    pairs = [(_seconds(a, x), _seconds(b, y)) for _ in range(3)]
    while len(pairs) < _PAIRS and sum(map(sum, pairs)) < _PROBE_S:
        pairs.append((_seconds(a, x), _seconds(b, y)))
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def _seconds(linear: Linear, x: torch.Tensor) -> float:
    start = time.perf_counter()
    linear(x)
    return time.perf_counter() - start
