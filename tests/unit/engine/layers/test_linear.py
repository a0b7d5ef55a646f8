"""Weight formats: exact, or not used."""

import pytest
import torch

from services.engine.layers import linear

needs_fbgemm = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this processor has no FBGEMM"
)


def weight(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, scale: float = 0.02) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)


def error(got: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> float:
    expected = x.double() @ w.double().T
    return float((got - expected).norm() / expected.norm())


@needs_fbgemm
@pytest.mark.parametrize("rows", [1, 2, 7, 64, 300])
@pytest.mark.parametrize("shape", [(96, 64), (256, 1024), (40, 33)])
def test_packed_fp16_is_as_exact_as_fp32_for_bf16_weights(rows: int, shape: tuple[int, int]) -> None:
    w, x = weight(*shape), torch.randn(rows, shape[1])
    assert error(linear.packed_fp16(w)(x), w, x) <= 1e-6


@needs_fbgemm
@pytest.mark.parametrize("factor", [1e-5, 1e6])
def test_weights_beyond_fp16_stay_fp32(factor: float) -> None:
    w, x = weight(32, 32, scale=factor), torch.randn(4, 32)
    assert error(linear.packed_fp16(w)(x), w, x) <= 1e-6


def test_fp32_weights_are_never_packed() -> None:
    assert linear.choose_cpu_format(weight(512, 512, torch.float32), room_for_both=True) is linear.fp32


@needs_fbgemm
@pytest.mark.parametrize("rows", [1, 255, 256, 300])
def test_by_rows_is_exact_on_both_sides_of_its_change(rows: int) -> None:
    w, x = weight(96, 64), torch.randn(rows, 64)
    assert error(linear.by_rows(w)(x), w, x) <= 1e-6


# Seconds of the plain and the packed product, for few rows and for many.
PROBES = {
    "packed": [(2.0, 1.0), (2.0, 1.0)],
    "plain": [(1.0, 2.0), (1.0, 2.0)],
    "each": [(2.0, 1.0), (100.0, 150.0)],
}


@needs_fbgemm
@pytest.mark.parametrize(
    ("faster", "room", "chosen"),
    [
        ("packed", True, "packed_fp16"),
        ("plain", True, "fp32"),
        ("each", True, "by_rows"),
        ("each", False, "packed_fp16"),  # a second of 12 rows weighs more than fifty of 1024
    ],
)
def test_the_probe_takes_the_fastest(monkeypatch: pytest.MonkeyPatch, faster: str, room: bool, chosen: str) -> None:
    sample = weight(64, 64)
    plain = linear.fp32(sample)
    monkeypatch.setattr(linear, "fp32", lambda _: plain)
    monkeypatch.setattr(linear, "_seconds", lambda product, x: PROBES[faster][len(x) > 12][product is not plain])
    assert linear.choose_cpu_format(sample, room_for_both=room) is getattr(linear, chosen)


@needs_fbgemm
def test_the_probe_refuses_an_inexact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "packed_fp16", lambda w: lambda x: (1 + 2e-5) * (x @ w.float().T))
    monkeypatch.setattr(linear, "_seconds", lambda product, _: 1.0)
    assert linear.choose_cpu_format(weight(64, 64), room_for_both=True) is linear.fp32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 12, 300])
def test_packed_16_bits_round_inputs_and_results_only(dtype: torch.dtype, rows: int) -> None:
    w, x = weight(96, 64).to(dtype), torch.randn(rows, 64).to(dtype)
    got = linear.packed_16_bits(dtype)(w)(x)
    assert got.dtype == dtype
    assert error(got.float(), w, x.float()) <= torch.finfo(dtype).eps


def test_16_bits_gain_what_they_gain_least(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {
        (12, torch.float32): 6.0,
        (12, torch.bfloat16): 2.0,
        (1024, torch.float32): 100.0,
        (1024, torch.bfloat16): 10.0,
    }
    monkeypatch.setattr(linear, "_seconds", lambda product, x: seconds[len(x), x.dtype])
    monkeypatch.setattr(linear, "choose_cpu_format", lambda sample, room_for_both: linear.fp32)
    assert linear.gain_of_16_bits(weight(64, 64), torch.bfloat16) == 3.0


def test_dense_on_a_device_of_a_dtype() -> None:
    w, x = weight(16, 8), torch.randn(3, 8).bfloat16()
    got = linear.dense(torch.device("cpu"), torch.bfloat16)(w)(x)
    assert got.dtype == torch.bfloat16
    assert error(got.float(), w, x.float()) <= 5e-3
