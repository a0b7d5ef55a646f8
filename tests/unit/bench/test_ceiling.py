import pytest
import torch

from bench.ceiling import Products, ways

SHAPES = {"qkv": (128, 64), "o": (64, 64), "up": (192, 64), "down": (64, 192)}


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
def test_products_do_the_work_they_say(format: str) -> None:
    products = Products(SHAPES, format)
    per_row = sum(2 * rows * columns for rows, columns in SHAPES.values())
    assert products.flops % (4 * per_row * products.rows) == 0
    products()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_ways_to_multiply_give_the_same(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=random).bfloat16()
    x = torch.randn(5, 32, generator=random).to(dtype)
    expected = x.double() @ weight.double().T
    for way in ways(dtype):
        torch.testing.assert_close(way(weight, None)(x).double(), expected, rtol=1e-2, atol=2e-2)
