import json
from pathlib import Path

import pytest
import torch

from bench.ceiling import Products, attention_flops, config_of, linear_flops, ways, weights
from bench.checkpoints import SHAPES
from services.engine.models.qwen3.config import ModelConfig


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["0.6b"]))
    return config_of(tmp_path)


def test_the_shapes_of_06b(config: ModelConfig) -> None:
    assert weights(config) == {"qkv": (4096, 1024), "o": (1024, 2048), "gate_up": (6144, 1024), "down": (1024, 3072)}
    # 15.7 million weights a layer, 440 million in all.
    assert sum(rows * columns for rows, columns in weights(config).values()) == 15_728_640


@pytest.mark.parametrize(("shape", "millions"), [("0.6b", 440), ("4b", 3633), ("8b", 6946)])
def test_the_weights_that_a_token_is_multiplied_with(shape: str, millions: int) -> None:
    config = ModelConfig.parse(SHAPES[shape])
    layer = sum(rows * columns for rows, columns in weights(config).values())
    assert round(config.num_hidden_layers * layer / 1e6) == millions


def test_linear_flops_leave_out_what_the_last_layer_need_not_do(config: ModelConfig) -> None:
    # One text of one token: nothing can be left out.
    assert linear_flops(config, 1, 1) == 2 * 28 * 15_728_640
    # 100 tokens of one text: 99 of them pass the last layer's keys and values only (2 x 1024 x 1024 weights).
    assert linear_flops(config, 100, 1) == 2 * (27 * 15_728_640 * 100 + 2_097_152 * 100 + 13_631_488)


def test_attention_flops_count_each_visible_pair(config: ModelConfig) -> None:
    # Three tokens see 1 + 2 + 3 keys; 2 x 128 multiplications and additions a head for the scores, as many for the sum.
    assert attention_flops(config, [3]) == 28 * 16 * 6 * 4 * 128
    assert attention_flops(config, [3, 3]) == 2 * attention_flops(config, [3])


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
def test_products_do_the_work_they_say(format: str) -> None:
    shape = SHAPES["tiny"]
    config = ModelConfig.parse(shape)
    products = Products(config, format)
    per_row = sum(2 * rows * columns for rows, columns in weights(config).values())
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
