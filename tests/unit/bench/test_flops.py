import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.flops import Architecture
from bench.folders import complete
from bench.shapes import SHAPES, roles
from bench.vocabulary import tokenizer

Of = Callable[[str], Architecture]


@pytest.fixture
def of(tmp_path: Path) -> Of:
    def read(shape: str) -> Architecture:
        config = SHAPES[shape]
        (tmp_path / "config.json").write_text(json.dumps(config))
        complete(tmp_path, roles(config)[0], tokenizer("bert"))
        return Architecture.of(tmp_path)

    return read


def test_the_products_of_a_layer(of: Of) -> None:
    qwen3 = of("0.6b")
    assert qwen3.products == {"qkv": (4096, 1024), "o": (1024, 2048), "gate_up": (6144, 1024), "down": (1024, 3072)}
    # 15.7 million weights a layer, 440 million in all.
    assert sum(rows * columns for rows, columns in qwen3.products.values()) == 15_728_640
    assert of("minilm").products == {"qkv": (1152, 384), "o": (384, 384), "up": (1536, 384), "down": (384, 1536)}


@pytest.mark.parametrize(
    ("shape", "millions"), [("0.6b", 440), ("4b", 3633), ("8b", 6946), ("minilm", 11), ("bge-m3", 302)]
)
def test_the_weights_that_a_token_is_multiplied_with(of: Of, shape: str, millions: int) -> None:
    found = of(shape)
    layer = sum(rows * columns for rows, columns in found.products.values())
    assert round(found.layers * layer / 1e6) == millions


def test_linear_flops_leave_out_what_the_last_layer_need_not_do(of: Of) -> None:
    qwen3 = of("0.6b")
    # One text of one token: nothing can be left out.
    assert qwen3.linear_flops(1, 1) == 2 * 28 * 15_728_640
    # 100 tokens of one text: 99 of them pass the last layer's keys and values only (2 x 1024 x 1024 weights).
    assert qwen3.linear_flops(100, 1) == 2 * (27 * 15_728_640 * 100 + 2_097_152 * 100 + 13_631_488)
    # bge-m3 likewise reads one token of each text; MiniLM reads all.
    for shape, pooled in (("bge-m3", 2), ("minilm", 100)):
        found = of(shape)
        layer, keys_values = 12 * found.hidden**2, 2 * found.hidden**2
        assert found.linear_flops(100, 2) == 2 * (
            (found.layers - 1) * layer * 100 + keys_values * 100 + (layer - keys_values) * pooled
        )


def test_attention_flops_count_each_visible_pair(of: Of) -> None:
    qwen3 = of("0.6b")
    # Three tokens see 1 + 2 + 3 keys; 2 x 128 multiplications and additions a head for the scores, as many for the sum.
    assert qwen3.attention_flops([3]) == 28 * 16 * 6 * 4 * 128
    assert qwen3.attention_flops([3, 3]) == 2 * qwen3.attention_flops([3])
    # In an encoder each sees all three.
    assert of("minilm").attention_flops([3]) == 6 * 12 * 9 * 4 * 32
