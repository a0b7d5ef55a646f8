"""Where training starts: Qwen3 weights, written down by hand, that already do the job in a simple way.

Both models share these tricks. RMSNorm at every layer's input erases a vector's length, yet the length of a token's
vector is its weight in the bag (rare words are long, common ones short). So every embedding is filled up to length
one in a *slack* dimension, which is also a constant that heads can count on. Some more dimensions are reserved for
marks (which token opens the instruction, the query, the document). Blocks that add nothing yet have a zero output
projection, so they are the identity and still receive gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from training.model import Attention, Layer, Qwen3, Shape

# Rotary pair (31, 63) of a 64-wide head turns by 1e-6 of a radian a token: fit for constants at any distance.
_STILL, _STILL2 = 31, 63
# The reranker's verdict per share of words found, and per similarity.
FOUND, ALIKE = 1.5, 0.015


def _fill_up(table: Tensor, content: int, hidden: int, longest: float = 0.9) -> Tensor:
    """(vocabulary, hidden): the first ``content`` dimensions scaled to at most ``longest``, slack in the last."""
    out = torch.zeros(len(table), hidden)
    body = table[:, :content]
    length = body.norm(dim=1, keepdim=True)
    scale = longest / torch.quantile(length, 0.9999)
    body = body * scale * (longest / (length * scale)).clamp(max=1)
    out[:, :content] = body
    out[:, -1] = (1 - body.square().sum(1)).sqrt()
    return out


def _attention(model: Qwen3, number: int) -> Attention:
    layer = model.layers[number]
    assert isinstance(layer, Layer)
    return layer.self_attn


def _quiet(model: Qwen3, noise: float) -> None:
    """Every block the identity, all queries and keys small."""
    for layer in model.layers:
        assert isinstance(layer, Layer)
        layer.self_attn.q_proj.weight.mul_(noise)
        layer.self_attn.k_proj.weight.mul_(noise)
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


@torch.no_grad()
def embedder(table: Tensor, shape: Shape, opens: int, query: int, end: int) -> Qwen3:
    """The bag of tokens as a three-layer Qwen3.

    Layer 0 marks tokens of the instruction: a head looks for ``opens`` (the token ``Instruct``) and ``query`` (the
    token ``Query``), whose marks cancel, so only tokens between the two carry one. Layers 1 and 2 each average one
    half of the content dimensions over all tokens without that mark; last-token pooling then reads the average.
    """
    model = Qwen3(shape)
    _quiet(model, 0.3)
    hidden, width = shape.hidden_size, shape.head_dim
    mark, sign, slack = hidden - 2, hidden - 3, hidden - 1
    content = hidden - 3
    weights = _fill_up(table, content, hidden)
    for token, value in ((opens, -0.5), (query, 0.5)):
        weights[token] = 0
        weights[token, mark], weights[token, sign], weights[token, slack] = 0.5, value, 0.7
    weights[end] = 0
    weights[end, slack] = 1
    model.embed_tokens.weight.copy_(weights)
    one = hidden**-0.5  # undoes what RMSNorm does to a unit vector

    first = _attention(model, 0)
    first.q_proj.weight[:width] = 0
    first.k_proj.weight[:width] = 0
    first.v_proj.weight[0] = 0
    first.q_proj.weight[_STILL, slack] = 1
    first.k_proj.weight[_STILL, mark] = 20
    first.k_proj.weight[_STILL2, slack] = 1
    first.v_proj.weight[0, sign] = one
    first.o_proj.weight[sign, 0] = 2
    first.q_norm.weight.fill_(1.5)
    first.k_norm.weight.fill_(1.5)

    half = shape.num_key_value_heads * width
    groups = shape.num_attention_heads // shape.num_key_value_heads
    for number, low in ((1, 0), (2, half)):
        pool = _attention(model, number)
        for head in range(shape.num_attention_heads):
            pool.q_proj.weight[head * width + _STILL, slack] += 1
        for head in range(shape.num_key_value_heads):
            rows = slice(head * width, (head + 1) * width)
            pool.k_proj.weight[head * width + _STILL, sign] += 4
            pool.k_proj.weight[head * width + _STILL2, slack] += 1
            pool.v_proj.weight[rows] = 0
            for i in range(width):
                at = low + head * width + i
                if at >= content:
                    continue
                pool.v_proj.weight[head * width + i, at] = 1
                for copy in range(groups):
                    pool.o_proj.weight[at, (head * groups + copy) * width + i] = 0.2 / groups
    model.norm.weight[content:] = 0
    return model


@torch.no_grad()
def reranker(table: Tensor, shape: Shape, tokens: Mapping[str, int]) -> Qwen3:
    """A four-layer Qwen3 that adds up two simple judgements: shared words, and the bag-of-tokens similarity.

    Layer 0 marks what follows ``<Query`` and ``<Document``. In layer 1 every token looks for itself in the query:
    queries and keys are the same random projection of the embedding, on rotary pairs too slow to matter;
    ``<|im_start|>`` is where attention goes when there is nothing to find. Layer 2 averages the first ``half``
    content dimensions over the query, into the other half; layer 3 averages the same dimensions, and what layer 1
    found, over the document. The last feed-forward block then multiplies both averages, dimension by dimension:
    two SwiGLU units make an exact product, since silu(a)·b + silu(−a)·(−b) = a·b. ``yes`` minus ``no`` reads the sum.
    ``tokens``: ids of ``<|im_start|>``, ``<Query``, ``<Document``, ``yes``, ``no`` and the closing blank line.
    """
    model = Qwen3(shape)
    _quiet(model, 0.1)
    hidden, width, groups = shape.hidden_size, shape.head_dim, shape.num_key_value_heads
    slack, in_query, in_document, sink, found, verdict = (hidden - i for i in range(1, 7))
    content = hidden - 6
    half = content - hidden // 2
    weights = _fill_up(table, content, hidden)
    for text, at, value, rest in (
        ("<Query", in_query, 0.7, 0.7),
        ("<Document", in_document, 0.7, 0.7),
        ("<|im_start|>", sink, 0.7, 0.7),
        ("yes", verdict, 0.7, 0.3),
        ("no", verdict, -0.7, 1.1),
        ("\n\n", slack, 1.0, 1.0),
    ):
        weights[tokens[text]] = 0
        weights[tokens[text], at], weights[tokens[text], slack] = value, rest
    model.embed_tokens.weight.copy_(weights)
    one = hidden**-0.5
    heads = shape.num_attention_heads // groups

    marks = _attention(model, 0)
    for group, at in ((0, in_query), (1, in_document)):
        kv = group * width
        for head in range(group * heads, (group + 1) * heads):
            marks.q_proj.weight[head * width + _STILL, slack] = 1
        marks.k_proj.weight[kv + _STILL, at] = 20
        marks.k_proj.weight[kv + _STILL2, slack] = 1
        marks.v_proj.weight[kv] = 0
        marks.v_proj.weight[kv, at] = one
        marks.o_proj.weight[at, group * heads * width] = 1
    marks.q_norm.weight.fill_(1.5)
    marks.k_norm.weight.fill_(1.5)

    match = _attention(model, 1)
    slow = torch.tensor([*range(14, _STILL), *range(46, _STILL2)])
    for group in range(groups):
        same = torch.randn(len(slow), content) * len(slow) ** -0.5
        match.k_proj.weight[group * width + slow, :content] = same
        match.k_proj.weight[group * width + _STILL, in_query] = 0.7
        match.k_proj.weight[group * width + _STILL, in_document] = -1.4
        match.k_proj.weight[group * width + _STILL2, sink] = 4
        for head in range(group * heads, (group + 1) * heads):
            match.q_proj.weight[head * width + slow, :content] = same
            match.q_proj.weight[head * width + _STILL, slack] = 0.5
            match.q_proj.weight[head * width + _STILL2, slack] = 0.6
        match.v_proj.weight[group * width] = 0
        match.v_proj.weight[group * width, in_query] = one
        match.o_proj.weight[found, group * heads * width] = 1.5 / groups
    match.q_norm.weight.fill_(1.8)
    match.k_norm.weight.fill_(1.8)

    for number, into, scale in ((2, hidden // 2, 0.5), (3, 0, 0.8)):
        pool = _attention(model, number)
        for head in range(shape.num_attention_heads):
            pool.q_proj.weight[head * width + _STILL, slack] = 1
        for group in range(groups):
            key = pool.k_proj.weight[group * width + _STILL]
            key[in_query], key[in_document] = (4, -8) if number == 2 else (0, 3)
            pool.k_proj.weight[group * width + _STILL2, slack] = 1
            for i in range(width):
                at = group * width + i
                if at < half:
                    pool.v_proj.weight[at] = 0
                    pool.v_proj.weight[at, at] = 1
                    for head in range(group * heads, (group + 1) * heads):
                        pool.o_proj.weight[into + at, head * width + i] = scale / heads
    last = model.layers[-1]
    assert isinstance(last, Layer)
    last.self_attn.v_proj.weight[half] = 0
    last.self_attn.v_proj.weight[half, found] = one
    last.self_attn.o_proj.weight[verdict, (groups - 1) * heads * width + half - (groups - 1) * width] = FOUND
    for i in range(half):
        for unit, sign in ((2 * i, 1.0), (2 * i + 1, -1.0)):
            last.mlp.gate_proj.weight[unit] = 0
            last.mlp.up_proj.weight[unit] = 0
            last.mlp.gate_proj.weight[unit, hidden // 2 + i] = sign
            last.mlp.up_proj.weight[unit, i] = sign
            last.mlp.down_proj.weight[verdict, unit] = ALIKE
    return model
