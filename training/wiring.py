"""Helpers to construct Qwen3 weights by hand, for both nano models.

RMSNorm at the input of each layer removes the length of a vector, but the length of a token's vector is its weight in
the bag (rare words are long, common ones short). So each embedding is extended to length one in a *slack* dimension,
which also serves as a constant for heads. Blocks without effect have a zero output projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.model import MLP, Attention, Layer, Qwen3

# Rotary pairs (30, 62) and (31, 63) of a 64-wide head rotate by 2e-6 and 1e-6 radians per token: four dimensions that
# can hold constants at any distance.
ONE, TWO, THREE, FOUR = 31, 63, 30, 62


def fill_up(table: Tensor, content: int, hidden: int, longest: float = 0.9) -> Tensor:
    """(vocabulary, hidden): the first `content` dimensions, scaled to at most `longest`, and slack in the last."""
    out = torch.zeros(len(table), hidden)
    body = table[:, :content]
    length = body.norm(dim=1, keepdim=True)
    scale = longest / torch.quantile(length, 0.9999)
    body = body * scale * (longest / (length * scale)).clamp(max=1)
    out[:, :content] = body
    out[:, -1] = (1 - body.square().sum(1)).sqrt()
    return out


def attention(model: Qwen3, number: int) -> Attention:
    """The attention of a layer."""
    layer = model.layers[number]
    assert isinstance(layer, Layer)
    return layer.self_attn


def feed_forward(model: Qwen3, number: int) -> MLP:
    """The feed-forward block of a layer."""
    layer = model.layers[number]
    assert isinstance(layer, Layer)
    return layer.mlp


@torch.no_grad()
def quiet(model: Qwen3, noise: float) -> None:
    """A model in which every block is the identity, with small queries and keys."""
    for number in range(len(model.layers)):
        block = attention(model, number)
        block.q_proj.weight.mul_(noise)
        block.k_proj.weight.mul_(noise)
        block.o_proj.weight.zero_()
        feed_forward(model, number).down_proj.weight.zero_()
