"""Encoders on CUDA without a card, at the real sizes: shapes, dtypes, devices and arguments. See test_cuda_fake.py."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from services.engine.devices.cuda import Cuda
from services.engine.devices.cuda_graphs import BUCKETS
from services.engine.layers.attention.cuda import as_varlen
from services.engine.layers.pooling import Pooling
from services.engine.models.base import Head, unit_vectors
from services.engine.models.encoder import build
from services.engine.models.encoder.config import EncoderConfig
from services.engine.models.encoder.heads import classifier
from services.engine.packing import transfer
from services.engine.types import Ids
from tests.support.fake_cuda import CUDA, FakeTensors, RefusedError, fake_cuda, refuse_unless, varlen_attn_2_13

MINILM = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
    "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
BGE_M3 = {
    "model_type": "xlm-roberta", "vocab_size": 250002, "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 2, "num_attention_heads": 16, "max_position_embeddings": 8194, "type_vocab_size": 1,
}  # fmt: skip
SIZES = {"MiniLM": MINILM, "bge-m3": BGE_M3}


def both_ways(*arguments: Any, window_size: tuple[int, int], enable_gqa: bool) -> torch.Tensor:
    """As the fake card's, which checks for decoders that it is causal. Here it must not be."""
    refuse_unless(window_size == (-1, -1), "attention that is causal")
    return varlen_attn_2_13(*arguments, window_size=(-1, 0), enable_gqa=enable_gqa)


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(transfer, "read", partial(transfer.read, kernel=as_varlen(both_ways)))
    with fake_cuda():
        yield


def cuda(size: str, pooling: Pooling, dtype: torch.dtype = torch.bfloat16, head: Head = unit_vectors) -> Cuda:
    config = EncoderConfig.parse(SIZES[size])
    most = config.max_position_embeddings
    return Cuda(build.prepare(config, FakeTensors(), lambda: torch.empty(1), pooling, CUDA, dtype)(most), head, CUDA)


def texts(*lengths: int) -> list[Ids]:
    return [np.arange(i, i + n, dtype=np.int32) for i, n in enumerate(lengths)]


def results(device: Cuda, sequences: list[Ids], *, width: int) -> None:
    packed = device.pack(sequences)
    assert packed.kv_index is None
    rows = device.launch(packed)()
    assert rows.shape == (len(sequences), width)
    assert rows.dtype == np.float32


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
def test_vectors_alone_and_through_every_graph(size: str, dtype: torch.dtype, pooling: Pooling) -> None:
    device, width = cuda(size, pooling, dtype), SIZES[size]["hidden_size"]
    assert isinstance(width, int)
    results(device, texts(1, 12, 300, 5, 512, 512, 400), width=width)
    for bucket in reversed(BUCKETS):
        device._capture(bucket, torch.cuda.graph_pool_handle())
        assert device._graphs[bucket]._out.shape == (bucket.segments, width)
    results(device, texts(1, 5), width=width)


@pytest.mark.parametrize("size", SIZES)
def test_scores(size: str) -> None:
    config = EncoderConfig.parse(SIZES[size])
    head = classifier(config, FakeTensors(), CUDA)
    results(cuda(size, Pooling.FIRST, head=head), texts(1, 12, 500), width=1)


def test_more_values_come_back_than_the_model_has() -> None:
    wide = torch.empty(20_000, 384, device=CUDA)
    device = cuda("MiniLM", Pooling.MEAN, head=lambda hidden: hidden @ wide.T)
    results(device, texts(1, 5, 3), width=20_000)


FAULTS: dict[str, tuple[Callable[[Cuda], object], str]] = {
    "causal": (lambda device: setattr(device._model, "causal", True), "attention that is causal"),
    "places on the host": (
        lambda device: object.__setattr__(device._model._weights, "places", torch.empty(1024, 384)),  # type: ignore[attr-defined]
        "an index on cuda:0 into cpu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    device = cuda("MiniLM", Pooling.MEAN)
    plant, found = FAULTS[fault]
    plant(device)
    with pytest.raises((RefusedError, RuntimeError), match=found):
        results(device, texts(1, 12, 1100), width=384)
