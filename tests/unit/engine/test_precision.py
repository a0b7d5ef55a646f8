"""Which number format a model gets."""

import logging

import pytest
import torch

from services.engine import precision
from services.engine.errors import CheckpointError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8


def sample(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(
    ("named", "stored", "gain", "chosen"),
    [
        ("auto", BF16, 7.0, BF16),
        ("auto", BF16, 1.9, FP32),
        ("auto", BF16, 0.1, FP32),
        ("auto", FP32, 7.0, FP32),  # its digits are not thrown away unasked
        ("auto", FP16, 7.0, FP32),
        ("float32", BF16, 7.0, FP32),
        ("bfloat16", FP32, 0.1, BF16),
        ("float16", BF16, 0.1, FP16),
        ("int8", BF16, 3.0, INT8),
        ("int8", FP32, 0.1, INT8),
    ],
)
def test_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, named: str, stored: torch.dtype, gain: float, chosen: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "gain", lambda sample, dtype: gain)
    monkeypatch.setattr(precision, "has_int8", lambda: True)
    assert precision.choose(precision.parse(named), CPU, sample(stored)) == chosen


@pytest.mark.parametrize(
    ("named", "stored", "chosen", "warns"),
    [
        ("auto", BF16, BF16, False),
        ("auto", FP16, FP16, False),
        ("auto", FP32, BF16, True),
        ("float16", BF16, FP16, False),
    ],
)
def test_on_cuda(
    named: str, stored: torch.dtype, chosen: torch.dtype, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert precision.choose(precision.parse(named), CUDA, sample(stored)) == chosen
    assert ("rounded to bfloat16" in caplog.text) == warns


@pytest.mark.parametrize("gain", [0.4, 3.0])
def test_a_format_that_the_processor_only_emulates_is_obeyed_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gain: float
) -> None:
    monkeypatch.setattr(precision, "gain", lambda sample, dtype: gain)
    with caplog.at_level(logging.WARNING, "winnow.engine"):
        assert precision.choose(BF16, CPU, sample(BF16)) == BF16
    assert ("0.4 times as fast here as float32" in caplog.text) == (gain < 1)


def test_this_processor_is_really_measured() -> None:
    chosen = precision.choose(None, CPU, sample(BF16))
    assert chosen in (BF16, FP32)


def test_float32_on_cuda_is_refused() -> None:
    with pytest.raises(CheckpointError, match="set bfloat16, float16 or auto"):
        precision.choose(FP32, CUDA, sample(BF16))


def test_int8_on_cuda_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"on the CPU only; set bfloat16, float16 or auto"):
        precision.choose(INT8, CUDA, sample(BF16))


def test_int8_that_the_processor_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_int8", lambda: False)
    with pytest.raises(CheckpointError, match="no exact int8 products; set float32, bfloat16 or auto"):
        precision.choose(INT8, CPU, sample(BF16))


def test_an_unknown_name() -> None:
    with pytest.raises(CheckpointError, match=r"dtype 'int4' is unknown: auto, float32, bfloat16, float16, int8"):
        precision.parse("int4")
