"""The CUDA path on a device. Skipped where there is none; what is plain integers is tested in test_graphs.py."""

import asyncio
import time
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

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(300),
]

TEXTS = ["a", "gravity is a force", "the capital of China is Beijing " * 20, "gravity is a force that attracts"]


def options(folder: Path) -> EngineSettings:
    return EngineSettings(str(folder), max_tokens=300, device="cuda")


async def optimized(engine: EmbedEngine) -> None:
    """Compiled, and every graph captured."""
    deadline = time.monotonic() + 240
    while len(engine._runner._device._graphs) < len(BUCKETS):  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_vectors_before_and_after_compiling_and_capturing(checkpoints: Callable[..., Path]) -> None:
    folder = checkpoints("tied", dtype=torch.bfloat16)
    expected = Recipe(folder, 300).embed(TEXTS)
    engine = EmbedEngine.load(options(folder))
    engine.start()
    before = np.stack([item.vector for item in (await engine.embed(TEXTS)).items])  # type: ignore[union-attr]
    await optimized(engine)
    after = np.stack([item.vector for item in (await engine.embed(TEXTS)).items])  # type: ignore[union-attr]
    alone = np.stack([(await engine.embed([text])).items[0].vector for text in TEXTS])  # type: ignore[union-attr]
    engine.close()
    assert (before * expected).sum(1).min() >= 0.998
    assert (after * before).sum(1).min() >= 0.9999
    assert (after * alone).sum(1).min() >= 0.9999


async def test_scores(checkpoints: Callable[..., Path]) -> None:
    folder = checkpoints("untied", dtype=torch.bfloat16)
    engine = RerankEngine.load(options(folder))
    engine.start()
    items = (await engine.rerank("gravity", TEXTS * 8)).items
    engine.close()
    got = np.array([item.probability for item in items])  # type: ignore[union-attr]
    assert np.abs(got - np.tile(Recipe(folder, 300).rerank("gravity", TEXTS), 8)).max() <= 0.05


@pytest.mark.parametrize("last", [False, True])
def test_ragged_attention_with_grouped_heads_and_longer_keys(last: bool) -> None:
    from services.engine.layers.attention.cuda import Ragged, varlen

    rng = np.random.default_rng(0)
    head = rng.integers(0, 99, 40)
    packed = pack([np.concatenate([head, rng.integers(0, 99, n)]).astype(np.int32) for n in (1, 5, 90, 300)])
    assert packed.kv_index is not None
    rows = len(packed.last_rows) if last else packed.tokens
    q = torch.randn(rows, 16, 128).bfloat16()
    k, v = torch.randn(packed.tokens, 8, 128).bfloat16(), torch.randn(packed.tokens, 8, 128).bfloat16()
    cu, max_q = (packed.cu_last, 1) if last else (packed.cu_q, packed.max_q)
    cu_q, cu_k, kv_index = (torch.from_numpy(array) for array in (cu, packed.cu_k, packed.kv_index))
    expected = Ragged(cu_q, cu_k, kv_index, max_q, packed.max_k, plain_varlen)(q.float(), k.float(), v.float())
    on_device = Ragged(cu_q.cuda(), cu_k.cuda(), kv_index.cuda(), max_q, packed.max_k, varlen)
    got = on_device(q.cuda(), k.cuda(), v.cuda()).float().cpu()
    torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)
