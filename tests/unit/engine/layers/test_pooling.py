"""Pooling against its definition."""

import pytest
import torch

from services.engine.layers.pooling import Pooling, pool


@pytest.mark.parametrize("pooling", [Pooling.FIRST, Pooling.LAST])
def test_the_one_row_that_was_wanted_is_the_result(pooling: Pooling) -> None:
    hidden = torch.randn(3, 8)
    assert torch.equal(pool(hidden, torch.arange(4, dtype=torch.int32), pooling), hidden)


def test_a_mean_is_over_a_text_s_own_rows() -> None:
    hidden, starts = torch.randn(700, 24), torch.tensor([0, 1, 300, 302, 700], dtype=torch.int32)
    got = pool(hidden, starts, Pooling.MEAN)
    expected = [part.double().mean(0) for part in torch.split(hidden, [1, 299, 2, 398])]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), torch.stack(expected), atol=1e-6, rtol=1e-6)
