"""Both ways to attend, on the CPU and on CUDA, against the textbook."""

import math
import resource

import numpy as np
import pytest
import torch

from services.engine.layers.attention import cpu
from services.engine.layers.attention.cuda import Ragged
from services.engine.packing.packing import pack
from tests.support.plain_attention import plain_varlen

HEADS, KV_HEADS, D = 4, 2, 16


def batch() -> list[np.ndarray]:
    rng = np.random.default_rng(1)

    def text(*lengths: int) -> np.ndarray:
        return rng.integers(0, 1000, sum(lengths)).astype(np.int32)

    system, query = text(20), text(12)
    documents = [np.concatenate([system, query, text(n)]) for n in (5, 5, 1, 90)]
    return [*documents, np.concatenate([system, text(40)]), system, text(1), text(7), text(7), text(130)]


def states(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slices of one fused projection, as the forward pass has them. Large enough to make softmax peaky.

    In quarters: float32 holds every score exactly, in whatever order it is summed.
    """
    fused = (12 * torch.randn(tokens, HEADS + 2 * KV_HEADS, D, generator=torch.Generator().manual_seed(2))).round() / 4
    return fused[:, :HEADS], fused[:, HEADS : HEADS + KV_HEADS], fused[:, HEADS + KV_HEADS :]


@pytest.mark.parametrize("min_saving", [0.0, 1.0])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("constants", [{}, {"_SCORES": 64}, {"_FUSED": 8}], ids=["as it is", "little memory", "fused"])
def test_both_give_the_textbook_result(
    min_saving: float, causal: bool, last: bool, constants: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in constants.items():
        monkeypatch.setattr(cpu, name, value)
    packed = pack(batch(), min_saving=min_saving)
    q, k, v = states(packed.tokens)
    rows = packed.wanted_rows if last else np.arange(packed.tokens)
    cu = packed.cu_wanted if last else packed.cu_q
    index = None if packed.kv_index is None else torch.from_numpy(packed.kv_index)
    cu_q, cu_k, max_q = torch.from_numpy(cu), torch.from_numpy(packed.cu_k), int(np.diff(cu).max())
    ragged = Ragged(cu_q, cu_k, index, max_q, packed.max_k, causal, plain_varlen)
    expected = ragged(q[rows].double(), k.double(), v.double())
    got = cpu.attend(q[rows], k, v, cu, packed.cu_q, packed.cu_k, causal=causal)
    assert (packed.kv_index is None) == (min_saving == 1.0)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("min_saving", [0.0, 1.0])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("run", [512, 8])
def test_16_bits_are_the_same_but_for_rounding(
    min_saving: float, causal: bool, last: bool, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_FUSED_RUN", run)
    packed = pack(batch(), min_saving=min_saving)
    q, k, v = states(packed.tokens)
    q = q / 8  # softmax less peaky: what is rounded is its probabilities
    rows = packed.wanted_rows if last else np.arange(packed.tokens)
    cu = packed.cu_wanted if last else packed.cu_q
    expected = cpu.attend(q[rows], k, v, cu, packed.cu_q, packed.cu_k, causal=causal)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    got = cpu.attend(q[rows], k, v, cu, packed.cu_q, packed.cu_k, causal=causal)
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize("causal", [True, False])
def test_the_textbook_agrees_with_torch(causal: bool) -> None:
    q, k, v = states(9)
    cu = torch.tensor([0, 9], dtype=torch.int32)
    by_head = [x.transpose(0, 1)[None] for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        by_head[0], by_head[1], by_head[2], is_causal=causal, enable_gqa=True
    )
    torch.testing.assert_close(plain_varlen(q, k, v, cu, cu, 9, 9, causal), expected[0].transpose(0, 1))


@pytest.mark.parametrize("causal", [True, False])
def test_32k_tokens_need_no_square_of_memory(causal: bool) -> None:
    packed = pack([np.arange(32_768, dtype=np.int32)])
    x = torch.randn(32_768, 1, 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = cpu.attend(x, x, x, packed.cu_q, packed.cu_q, packed.cu_k, causal=causal)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert math.isfinite(out.sum().item())
    assert grown_mb < 256  # a mask of one bit per pair would be 128 MB, scores 4 GB
