"""Weight formats: exact, or not used."""

import pytest
import torch

from services.engine.layers import linear

needs_fbgemm = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this processor has no FBGEMM"
)


needs_int8 = pytest.mark.skipif(not linear.has_int8(), reason="this processor has no exact int8 products")


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
    assert error(linear.packed_fp16(w, None)(x), w, x) <= 1e-6


@needs_fbgemm
@pytest.mark.parametrize("factor", [1e-5, 1e6])
def test_weights_beyond_fp16_stay_fp32(factor: float) -> None:
    w, x = weight(32, 32, scale=factor), torch.randn(4, 32)
    assert error(linear.packed_fp16(w, None)(x), w, x) <= 1e-6


def test_fp32_weights_are_never_packed() -> None:
    assert linear.choose_cpu_format(weight(512, 512, torch.float32), room_for_both=True) is linear.fp32


@needs_fbgemm
@pytest.mark.parametrize("rows", [1, 255, 256, 300])
def test_by_rows_is_exact_on_both_sides_of_its_change(rows: int) -> None:
    w, x = weight(96, 64), torch.randn(rows, 64)
    assert error(linear.by_rows(w, None)(x), w, x) <= 1e-6


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
    plain = linear.fp32(sample, None)
    monkeypatch.setattr(linear, "fp32", lambda *_: plain)
    monkeypatch.setattr(linear, "_seconds", lambda product, x: PROBES[faster][len(x) > 12][product is not plain])
    assert linear.choose_cpu_format(sample, room_for_both=room) is getattr(linear, chosen)


@needs_fbgemm
def test_the_probe_refuses_an_inexact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "packed_fp16", lambda w, _: lambda x: (1 + 2e-5) * (x @ w.float().T))
    monkeypatch.setattr(linear, "_seconds", lambda product, _: 1.0)
    assert linear.choose_cpu_format(weight(64, 64), room_for_both=True) is linear.fp32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 12, 300])
def test_packed_16_bits_round_inputs_and_results_only(dtype: torch.dtype, rows: int) -> None:
    w, x = weight(96, 64).to(dtype), torch.randn(rows, 64).to(dtype)
    got = linear.packed_16_bits(dtype)(w, None)(x)
    assert got.dtype == dtype
    assert error(got.float(), w, x.float()) <= torch.finfo(dtype).eps


@needs_int8
@pytest.mark.parametrize("rows", [1, 12, 300])
@pytest.mark.parametrize("shape", [(96, 64), (256, 1024), (40, 33)])
def test_packed_int8_rounds_to_127_steps_of_a_row(rows: int, shape: tuple[int, int]) -> None:
    w, x = weight(*shape), torch.randn(rows, shape[1])
    scale, largest = w.float().abs().amax(1, True) / 127, x.abs().amax(1, True)
    steps = (w.float() / scale).round() * scale, (x * (127 / largest)).round() * largest / 127
    got = linear.packed_int8(w, None)(x)
    assert got.dtype == torch.float32
    assert error(got, *steps) <= 1e-6
    assert error(got, w, x) <= 2e-2


@needs_int8
def test_an_int8_row_does_not_depend_on_the_rows_beside_it() -> None:
    multiply, x = linear.packed_int8(weight(96, 64), None), torch.randn(300, 64)
    x[7] *= 1e4
    x[8] = 0.0
    together, alone = multiply(x), torch.cat([multiply(row.unsqueeze(0)) for row in x])
    assert torch.equal(together, alone)
    assert not together[8].any()


@needs_int8
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_int8_does_not_hide_a_value_that_is_not_finite(value: float) -> None:
    x = torch.randn(3, 64)
    x[1, 5] = value
    finite = linear.packed_int8(weight(96, 64), None)(x).isfinite().all(1)
    assert finite.tolist() == [True, False, True]


@needs_int8
def test_int8_leaves_its_input_as_it_is() -> None:
    x = torch.randn(5, 64)
    before = x.clone()
    linear.packed_int8(weight(96, 64), None)(x)
    assert torch.equal(x, before)


def test_int8_that_saturates_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "packed_int8", lambda w, _: lambda x: (x @ w.T).clamp(max=1023 * 0.5))
    assert not linear.has_int8()


@pytest.mark.parametrize(("dtype", "inputs"), [(torch.bfloat16, torch.bfloat16), (torch.int8, torch.float32)])
def test_a_format_gains_what_it_gains_least(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, inputs: torch.dtype
) -> None:
    def exact(x: torch.Tensor) -> torch.Tensor:
        return x

    seconds = {(12, True): 6.0, (12, False): 2.0, (1024, True): 100.0, (1024, False): 10.0}
    seen = []

    def measured(product: linear.Linear, x: torch.Tensor) -> float:
        if product is not exact:
            seen.append(x.dtype)
        return seconds[len(x), product is exact]

    monkeypatch.setattr(linear, "_seconds", measured)
    monkeypatch.setattr(linear, "packed_int8", linear.fp32)
    monkeypatch.setattr(linear, "choose_cpu_format", lambda sample, room_for_both: lambda *_: exact)
    assert linear.gain(weight(64, 64), dtype) == 3.0
    assert set(seen) == {inputs}


def test_dense_on_a_device_of_a_dtype() -> None:
    w, x = weight(16, 8), torch.randn(3, 8).bfloat16()
    got = linear.dense(torch.device("cpu"), torch.bfloat16)(w, None)(x)
    assert got.dtype == torch.bfloat16
    assert error(got.float(), w, x.float()) <= 5e-3


BIASED: list[tuple[linear.LinearFormat, torch.dtype, float]] = [
    (linear.fp32, torch.float32, 1e-6),
    (linear.packed_16_bits(torch.bfloat16), torch.bfloat16, 1e-2),
    (linear.packed_16_bits(torch.float16), torch.float16, 1e-3),
    pytest.param(linear.packed_fp16, torch.float32, 1e-6, marks=needs_fbgemm),  # type: ignore[list-item]
    pytest.param(linear.by_rows, torch.float32, 1e-6, marks=needs_fbgemm),  # type: ignore[list-item]
    pytest.param(linear.packed_int8, torch.float32, 2e-2, marks=needs_int8),  # type: ignore[list-item]
]


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("scale", [0.02, 1e6], ids=["exact in 16 bits", "not"])
@pytest.mark.parametrize(("build", "inputs", "most"), BIASED)
def test_a_bias_is_added_in_every_format(
    build: linear.LinearFormat, inputs: torch.dtype, most: float, scale: float, rows: int
) -> None:
    if inputs == torch.float16 and scale > 1:
        return  # such weights have no fp16
    w, x = weight(96, 64, scale=scale), torch.randn(rows, 64).to(inputs)
    bias = weight(96, 1, scale=scale).flatten()
    expected = x.double() @ w.double().T + bias.double()
    assert (build(w, bias)(x).double() - expected).norm() <= most * expected.norm()
