"""Measures the matrix products of a model on this machine. They are an upper bound for the speed of any engine."""

import time
from collections.abc import Mapping
from typing import Protocol

import torch

from services.engine.host import cpus
from services.engine.layers.linear import Linear, LinearFormat, dense, packed_fp16, packed_int8

Shapes = Mapping[str, tuple[int, int]]
"""`[out, in]` of each product of a layer."""

_LAYERS = 4  # distinct weights, so that caches hold no more of them than of a model's
_ROWS = (256, 512, 1024)
_SECONDS = 1.0


class Ceiling(Protocol):
    """The upper bound. A call does `flops` of work, `rows` tokens at a time."""

    name: str
    rows: int
    flops: float

    def __call__(self) -> None:
        """Does the work and waits for its end."""


class Products:
    """The products of a few layers on the CPU, alone, in a number format. What packs the weights for it and which step
    size is fastest here is tried."""

    name = "gemm"

    def __init__(self, shapes: Shapes, format: str) -> None:
        torch.set_num_threads(cpus())
        dtype: torch.dtype = getattr(torch, format)
        self._inputs_dtype = torch.float32 if dtype == torch.int8 else dtype
        self._flops_per_row = float(sum(2 * rows * columns for rows, columns in shapes.values())) * _LAYERS
        probes = [
            (self._time(layers, inputs) / count, layers, inputs)
            for linear in ways(dtype)
            for layers in [self._build(shapes, linear)]
            for count in _ROWS
            for inputs in [self._inputs(shapes, count)]
        ]
        seconds, self._layers, self._x = min(probes, key=lambda probe: probe[0])
        self.rows = len(self._x["qkv"])
        self._repeats = max(1, round(_SECONDS / (seconds * self.rows)))
        self.flops = self._flops_per_row * self.rows * self._repeats

    def __call__(self) -> None:
        """Does `flops` of work."""
        for _ in range(self._repeats):
            self._once(self._layers, self._x)

    def _build(self, shapes: Shapes, linear: LinearFormat) -> list[dict[str, Linear]]:
        random = torch.Generator().manual_seed(0)
        return [
            {
                name: linear((torch.randn(shape, generator=random) * 0.02).bfloat16(), None)
                for name, shape in shapes.items()
            }
            for _ in range(_LAYERS)
        ]

    def _inputs(self, shapes: Shapes, rows: int) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(1)
        return {
            name: torch.randn(rows, columns, generator=random).to(self._inputs_dtype)
            for name, (_, columns) in shapes.items()
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
            best = min(best, time.perf_counter() - start)
        return best


class LargeProduct:
    """A large square product on CUDA: the matrix rate that a card really gives in a number format."""

    name = "roofline"

    def __init__(self, format: str, size: int = 8192, repeats: int = 20) -> None:
        self.rows = size
        dtype: torch.dtype = getattr(torch, format)
        self._a = torch.randn(size, size, device="cuda", dtype=dtype)
        self._b = torch.randn(size, size, device="cuda", dtype=dtype)
        self._repeats = repeats
        self.flops = 2.0 * size**3 * repeats

    def __call__(self) -> None:
        """Does `flops` of work."""
        for _ in range(self._repeats):
            torch.mm(self._a, self._b)
        torch.cuda.synchronize()


def ceiling(shapes: Shapes, device: str, format: str) -> Ceiling:
    """On a CPU the products of the model's own shapes, on CUDA one large product."""
    return Products(shapes, format) if device == "cpu" else LargeProduct(format)


def ways(dtype: torch.dtype) -> list[LinearFormat]:
    """All ways to multiply in a format: plain weights, weights packed once by oneDNN and, for float32, FBGEMM's. int8:
    the engine's own, with the time of quantising."""
    if dtype == torch.int8:
        return [packed_int8]
    ways = [dense(torch.device("cpu"), dtype)]
    if dtype in (torch.float32, torch.bfloat16) and _mkldnn_packs():
        ways.append(_packed(dtype))
    if dtype == torch.float32 and "fbgemm" in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = "fbgemm"
        ways.append(packed_fp16)
    return ways


def _packed(dtype: torch.dtype) -> LinearFormat:
    def build(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), _ROWS[-1])
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    return build


def _mkldnn_packs() -> bool:
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
