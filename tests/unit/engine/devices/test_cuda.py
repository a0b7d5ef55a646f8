"""The CUDA path on a device. Skipped where there is none; what is plain integers is tested in test_cuda_graphs.py, and
what is shapes and dtypes in test_cuda_fake.py."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from services.engine.devices.cuda_graphs import BUCKETS
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.packing.packing import pack
from services.engine.types import EngineSettings
from tests.support.plain_attention import plain_varlen
from tests.support.recipe import Recipe
from tests.unit.engine.conftest import Blocking, blocking

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(300),
]

TEXTS = ["a", "gravity is a force", "the capital of China is Beijing " * 20, "gravity is a force that attracts"]


def options(folder: Path) -> EngineSettings:
    return EngineSettings(str(folder), max_tokens=300, device="cuda")


def optimized(engine: Blocking) -> None:
    """Compiled, and every graph captured."""
    for thread in threading.enumerate():
        if thread.name == "optimize":
            thread.join(240)
    assert len(engine.engine._runner._device._graphs) == len(BUCKETS)  # type: ignore[attr-defined]


def vectors(engine: Blocking, texts: list[str]) -> np.ndarray:
    return np.stack([item.vector for item in engine("embed", texts).items])


def test_vectors_before_and_after_compiling_and_capturing(checkpoints: Callable[..., Path]) -> None:
    folder = checkpoints("tied", dtype=torch.bfloat16)
    expected = Recipe(folder, 300).embed(TEXTS)
    with blocking(EmbedEngine.load(options(folder))) as engine:
        before = vectors(engine, TEXTS)
        optimized(engine)
        after = vectors(engine, TEXTS)
        alone = np.concatenate([vectors(engine, [text]) for text in TEXTS])
    assert (before * expected).sum(1).min() >= 0.998
    assert (after * before).sum(1).min() >= 0.9999
    assert (after * alone).sum(1).min() >= 0.9999


def test_scores(checkpoints: Callable[..., Path]) -> None:
    folder = checkpoints("untied", dtype=torch.bfloat16)
    with blocking(RerankEngine.load(options(folder))) as engine:
        items = engine("rerank", "gravity", TEXTS * 8).items
    got = np.array([item.probability for item in items])
    assert np.abs(got - np.tile(Recipe(folder, 300).rerank("gravity", TEXTS), 8)).max() <= 0.05


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("last", [False, True])
def test_ragged_attention_with_grouped_heads_and_longer_keys(last: bool, causal: bool) -> None:
    from services.engine.layers.attention.cuda import Ragged, varlen

    rng = np.random.default_rng(0)
    head = rng.integers(0, 99, 40)
    packed = pack([np.concatenate([head, rng.integers(0, 99, n)]).astype(np.int32) for n in (1, 5, 90, 300)])
    assert packed.kv_index is not None
    rows = len(packed.wanted_rows) if last else packed.tokens
    q = torch.randn(rows, 16, 128).bfloat16()
    k, v = torch.randn(packed.tokens, 8, 128).bfloat16(), torch.randn(packed.tokens, 8, 128).bfloat16()
    cu, max_q = (packed.cu_wanted, 1) if last else (packed.cu_q, packed.max_q)
    cu_q, cu_k, kv_index = (torch.from_numpy(array) for array in (cu, packed.cu_k, packed.kv_index))
    expected = Ragged(cu_q, cu_k, kv_index, max_q, packed.max_k, causal, plain_varlen)(q.float(), k.float(), v.float())
    on_device = Ragged(cu_q.cuda(), cu_k.cuda(), kv_index.cuda(), max_q, packed.max_k, causal, varlen)
    got = on_device(q.cuda(), k.cuda(), v.cuda()).float().cpu()
    torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)
