"""Decoders of Qwen2's kind on CUDA without a card: biases, no norm of heads, both masks and poolings; real sizes."""

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
from services.engine.models.base import unit_vectors
from services.engine.models.decoder import build
from services.engine.models.qwen2.config import Qwen2Config
from services.engine.packing import transfer
from services.engine.types import Ids
from tests.support.fake_cuda import CUDA, FakeTensors, RefusedError, fake_cuda, refuse_unless, varlen_attn_2_13

# config.json of Alibaba-NLP/gte-Qwen2-1.5B-instruct (and stella_en_1.5B_v5) and of gte-Qwen2-7B-instruct.
SHAPES: dict[str, dict[str, Any]] = {
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4},
}
SHARED = {"vocab_size": 151646, "num_hidden_layers": 2, "max_position_embeddings": 32768, "rope_theta": 1e6}
WINDOWS = {True: (-1, 0), False: (-1, -1)}


@pytest.fixture(autouse=True)
def card() -> Iterator[None]:
    with fake_cuda():
        yield


def attention(causal: bool) -> Callable[..., torch.Tensor]:
    """The card's, for a model of one mask. How a causal one is called decides nothing about shapes."""

    def attend(*arguments: Any, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False) -> torch.Tensor:
        refuse_unless(window_size == WINDOWS[causal], f"attention with the window {window_size}")
        return varlen_attn_2_13(*arguments, window_size=(-1, 0), enable_gqa=enable_gqa)

    return attend


def cuda(size: str, dtype: torch.dtype, *, causal: bool, pooling: Pooling) -> Cuda:
    config = Qwen2Config.parse(SHARED | SHAPES[size])
    assert config.head_dim == 128
    model = build.prepare(config, FakeTensors(), CUDA, dtype, causal=causal, pooling=pooling)(8192)
    return Cuda(model, unit_vectors, CUDA)


def sequences() -> list[Ids]:
    """More than a graph holds, most with a beginning in common, one of them twice."""
    head, rng = np.arange(80, dtype=np.int32), np.random.default_rng(0)
    texts = [np.concatenate([head, rng.integers(100, 9999, n).astype(np.int32)]) for n in (1, 12, 300, 700, 8000)]
    return [*texts, texts[2], head[:1]]


@pytest.mark.parametrize("pooling", [Pooling.LAST, Pooling.MEAN])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SHAPES)
def test_vectors_and_every_graph(
    monkeypatch: pytest.MonkeyPatch, size: str, dtype: torch.dtype, causal: bool, pooling: Pooling
) -> None:
    monkeypatch.setattr(transfer, "read", partial(transfer.read, kernel=as_varlen(attention(causal))))
    device = cuda(size, dtype, causal=causal, pooling=pooling)
    width, shares = SHAPES[size]["hidden_size"], causal and pooling is Pooling.LAST
    packed = device.pack(sequences())
    assert (packed.kv_index is not None) == shares
    rows = device.launch(packed)()
    assert rows.shape == (len(sequences()), width)
    assert rows.dtype == np.float32
    for bucket in reversed(BUCKETS):
        device._capture(bucket, torch.cuda.graph_pool_handle())
        assert device._graphs[bucket]._out.shape == (bucket.segments, width)
    short = [np.full(5, i, np.int32) for i in range(3)]
    assert device.launch(device.pack(short))().shape == (3, width)


def test_a_mask_of_the_other_kind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "read", partial(transfer.read, kernel=as_varlen(attention(True))))
    device = cuda("1.5b", torch.bfloat16, causal=False, pooling=Pooling.LAST)
    with pytest.raises(RefusedError, match="the window"):
        device.launch(device.pack(sequences()))
