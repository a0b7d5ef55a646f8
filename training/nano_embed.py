"""nano-embed: converts the trained bag-of-tokens model to a Qwen3 model."""

from __future__ import annotations

import torch
from torch import Tensor

from training.model import Qwen3, Shape
from training.wiring import ONE, TWO, attention, fill_up, quiet


@torch.no_grad()
def embedder(table: Tensor, shape: Shape, opens: int, query: int, end: int) -> Qwen3:
    """The bag-of-tokens model as a Qwen3 model with three layers.

    Layer 0 marks the tokens of the instruction: a head attends to `opens` (the token `Instruct`) and `query` (the token
    `Query`). Their marks cancel out, so only tokens between the two are marked. Layers 1 and 2 each average one half of
    the content dimensions over all tokens without a mark. Last-token pooling then reads the average.
    """
    model = Qwen3(shape)
    quiet(model, 0.02)
    hidden, width = shape.hidden_size, shape.head_dim
    mark, sign, slack = hidden - 2, hidden - 3, hidden - 1
    content = hidden - 3
    weights = fill_up(table, content, hidden)
    for token, value in ((opens, -0.5), (query, 0.5)):
        weights[token] = 0
        weights[token, mark], weights[token, sign], weights[token, slack] = 0.5, value, 0.7
    weights[end] = 0
    weights[end, slack] = 1
    model.embed_tokens.weight.copy_(weights)
    one = hidden**-0.5  # undoes what RMSNorm does to a unit vector

    first = attention(model, 0)
    first.q_proj.weight[:width] = 0
    first.k_proj.weight[:width] = 0
    first.v_proj.weight[0] = 0
    first.q_proj.weight[ONE, slack] = 1
    first.k_proj.weight[ONE, mark] = 20
    first.k_proj.weight[TWO, slack] = 1
    first.v_proj.weight[0, sign] = one
    first.o_proj.weight[sign, 0] = 2
    first.q_norm.weight.fill_(1.5)
    first.k_norm.weight.fill_(1.5)

    half = shape.num_key_value_heads * width
    groups = shape.num_attention_heads // shape.num_key_value_heads
    for number, low in ((1, 0), (2, half)):
        pool = attention(model, number)
        for head in range(shape.num_attention_heads):
            pool.q_proj.weight[head * width + ONE, slack] += 1
        for head in range(shape.num_key_value_heads):
            rows = slice(head * width, (head + 1) * width)
            pool.k_proj.weight[head * width + ONE, sign] += 4
            pool.k_proj.weight[head * width + ONE, mark] -= 8
            pool.k_proj.weight[head * width + TWO, slack] += 1
            pool.v_proj.weight[rows] = 0
            for i in range(width):
                at = low + head * width + i
                if at >= content:
                    continue
                pool.v_proj.weight[head * width + i, at] = 1
                for copy in range(groups):
                    pool.o_proj.weight[at, (head * groups + copy) * width + i] = 0.05 / groups
    model.norm.weight[content:] = 0
    return model
