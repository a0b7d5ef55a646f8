"""Qwen3 weights written down by hand around the trained bag of tokens.

Both models share these tricks. RMSNorm at every layer's input erases a vector's length, yet the length of a token's
vector is its weight in the bag (rare words are long, common ones short). So every embedding is filled up to length
one in a *slack* dimension, which is also a constant that heads can count on. Some more dimensions are reserved for
marks (which token opens the instruction, the query, the document).
Blocks that add nothing have a zero output projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.model import Attention, Layer, Qwen3, Shape

# Rotary pair (31, 63) of a 64-wide head turns by 1e-6 of a radian a token: fit for constants at any distance.
_STILL, _STILL2 = 31, 63
# The tokens of the reranker's prompt that mean something, or nothing, to it.
MARKS = (
    *("<|im_start|>", "<|im_end|>", "<Query", "<Document", ">:", "yes", "no"),
    *("<think>", "</think>", "assistant", "system", "\n", "\n\n"),
)
# The width of a word's code: as many as there are slow rotary dimensions in a head, less the two constants.
CODE = 34
# The reranker's verdict for words found and for similarity, how much attention the constant takes, and how much rather
# a word is found in the document than in the query.
FOUND, ALIKE, SINK, PREFER = 3000.0, 0.015, 0.76, 0.28
# How steeply ``yes`` and ``no`` read the verdict, and what is taken off: so that probabilities spread out.
READ, OFFSET = 0.28, 0.52
# How much the averages over query and document are blown up, so that they outweigh the rest when they are normalised.
AVERAGE = (3.0, 5.0)


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
    _quiet(model, 0.02)
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
            pool.k_proj.weight[head * width + _STILL, mark] -= 8
            pool.k_proj.weight[head * width + _STILL2, slack] += 1
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


@torch.no_grad()
def reranker(table: Tensor, codes: Tensor, rarity: Tensor, shape: Shape, tokens: Mapping[str, int]) -> Qwen3:
    """A four-layer Qwen3 that adds up two simple judgements: rare words shared, and the bag-of-tokens similarity.

    Layer 0 marks what follows ``<Query`` and ``<Document``. In layer 1 every token looks for its own word by its
    code, on rotary pairs too slow to matter, and finds it in the query, in itself and earlier in the document; only
    the first counts, so a word's second occurrence is worth less than its first. The feed-forward block multiplies
    the find with the word's rarity. Layer 2 averages the vectors over the query, into other dimensions; layer 3
    averages them over the document, while its last head adds up the finds over the document's length plus a
    constant, as BM25 does: the constant is the attention that ``<|im_start|>`` takes. The last feed-forward block
    multiplies both averages, dimension by dimension: two SwiGLU units make an exact product, since
    silu(a)·b + silu(−a)·(−b) = a·b. ``yes`` minus ``no`` reads the sum.

    ``codes``: (vocabulary, CODE) and ``rarity``: (vocabulary,), of ``training.lexical``; ``tokens``: ids of ``MARKS``.
    """
    model = Qwen3(shape)
    _quiet(model, 0.02)
    hidden, width, groups = shape.hidden_size, shape.head_dim, shape.num_key_value_heads
    slack, in_query, in_document, sink, found, verdict, rare, worth = (hidden - i for i in range(1, 9))
    half = hidden // 2 - 8
    code = slice(hidden - 8 - CODE, hidden - 8)
    heads = shape.num_attention_heads // groups
    weights = _fill_up(table, half, hidden, longest=0.7)
    weights[:, code] = 0.5 * codes
    weights[:, rare] = 0.5 * rarity
    weights[:, slack] = (1 - weights[:, :half].square().sum(1) - 0.25).clamp(min=0.04).sqrt()
    for token in tokens.values():  # the prompt's own marks say nothing about a text
        weights[token] = 0
        weights[token, slack] = 1
    for text, at, value, rest in (
        ("<Query", in_query, 0.1, 1.0),
        ("<Document", in_document, 0.1, 1.0),
        ("<|im_start|>", sink, 0.7, 0.7),
        ("yes", verdict, READ, 0.7 - OFFSET / 2),
        ("no", verdict, -READ, 0.7 + OFFSET / 2),
    ):
        weights[tokens[text], at], weights[tokens[text], slack] = value, rest
    model.embed_tokens.weight.copy_(weights)
    one = hidden**-0.5

    marks = _attention(model, 0)
    for group, at in ((0, in_query), (1, in_document)):
        kv = group * width
        for head in range(group * heads, (group + 1) * heads):
            marks.q_proj.weight[head * width + _STILL, slack] = 1
        marks.k_proj.weight[kv + _STILL, at] = 40
        marks.k_proj.weight[kv + _STILL2, slack] = 1
        marks.v_proj.weight[kv] = 0
        marks.v_proj.weight[kv, at] = 7 * one
        marks.o_proj.weight[at, group * heads * width] = 1
    marks.q_norm.weight.fill_(1.5)
    marks.k_norm.weight.fill_(1.5)

    match = _attention(model, 1)
    slow = torch.tensor([*range(14, _STILL), *range(46, _STILL2)])
    for group in range(groups):
        match.k_proj.weight[group * width + slow, code] = 2 * torch.eye(CODE)
        match.k_proj.weight[group * width + _STILL, in_query] = -PREFER
        match.k_proj.weight[group * width + _STILL, in_document] = PREFER
        for head in range(group * heads, (group + 1) * heads):
            match.q_proj.weight[head * width + slow, code] = 2 * torch.eye(CODE)
            match.q_proj.weight[head * width + _STILL, slack] = 0.3
        match.v_proj.weight[group * width] = 0
        match.v_proj.weight[group * width, in_query] = one
        match.v_proj.weight[group * width, in_document] = -one
        match.o_proj.weight[found, group * heads * width] = 1.5 / groups
    match.q_norm.weight.fill_(1.8)
    match.k_norm.weight.fill_(1.8)
    _product(model.layers[1], [(found, rare)], worth, 0.02)

    for number, into, scale in ((2, hidden // 2, AVERAGE[0]), (3, 0, AVERAGE[1])):
        pool = _attention(model, number)
        for head in range(shape.num_attention_heads):
            pool.q_proj.weight[head * width + _STILL, slack] = 1
        for group in range(groups):
            key = pool.k_proj.weight[group * width + _STILL]
            key[in_query], key[in_document] = (4, -8) if number == 2 else (0, 12)
            pool.k_proj.weight[group * width + _STILL2, slack] = 1
            pool.k_proj.weight[group * width + _STILL2, in_query] = 0 if number == 2 else 12
            for i in range(width):
                at = group * width + i
                if at < half:
                    pool.v_proj.weight[at] = 0
                    pool.v_proj.weight[at, at] = 1
                    pool.o_proj.weight[into + at, group * heads * width + i] = scale
        pool.q_norm.weight.fill_(1.3)
        pool.k_norm.weight.fill_(1.3)
    gather = _attention(model, shape.num_hidden_layers - 1)
    for group in range(groups):
        gather.k_proj.weight[group * width + _STILL - 1, sink] = 20
    head = groups * heads - 1  # the last head of the last group gathers; dimension `half` is free in that group
    gather.q_proj.weight[head * width + _STILL, slack] = 0.65
    gather.q_proj.weight[head * width + _STILL - 1, slack] = SINK
    gather.v_proj.weight[half] = 0
    gather.v_proj.weight[half, worth] = (FOUND * one) ** 0.5
    gather.o_proj.weight[verdict, head * width + half - (groups - 1) * width] = (FOUND * one) ** 0.5
    _product(model.layers[-1], [(hidden // 2 + i, i) for i in range(half)], verdict, ALIKE)
    return model


def _product(layer: nn.Module, pairs: Sequence[tuple[int, int]], into: int, scale: float) -> None:
    """Let the feed-forward block add ``scale`` times the pairs' products to dimension ``into``."""
    assert isinstance(layer, Layer)
    even = scale ** (1 / 3)  # the optimiser steps alike in all three matrices
    for number, (a, b) in enumerate(pairs):
        for unit, sign in ((2 * number, 1.0), (2 * number + 1, -1.0)):
            layer.mlp.gate_proj.weight[unit] = 0
            layer.mlp.up_proj.weight[unit] = 0
            layer.mlp.gate_proj.weight[unit, a] = sign * even
            layer.mlp.up_proj.weight[unit, b] = sign * even
            layer.mlp.down_proj.weight[into, unit] = scale / even**2
