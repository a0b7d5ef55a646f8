"""nano-rerank: a relevance model, constructed as a Qwen3 model.

The logit is the similarity of the averages of query and document, plus the query words in the document, each counted
once and weighted by its rarity, divided by the document's length plus a constant. On a separate set of packages,
counting a word once was better than BM25's slow saturation, and a large constant was better than a small one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from training.model import Qwen3, Shape
from training.wiring import FOUR, ONE, THREE, TWO, attention, feed_forward, fill_up, quiet

# Tokens of the prompt with a special role in the circuit.
MARKS = (
    *("<|im_start|>", "<|im_end|>", "<Instruct", "<Query", "<Document", ">:", "yes", "no"),
    *("<think>", "</think>", "assistant", "system", "\n", "\n\n"),
)
# The width of a word's code: one for each key head, in rotary dimensions so slow that distance hardly matters (a fifth
# of a radian over 500 tokens at most), less the four constants.
CODE = (3, 24)
_SLOW = (*range(18, THREE), *range(50, FOUR))
# Bounds of the attention found in the query, from which a word counts and counts fully. The first occurrence in the
# document shares the attention equally with the one in the query; the second one has a third left.
FOUND = (0.31, 0.38)
# How the last token's attention is shared between a token of the document and `<Instruct`, which gets as much as
# about 700 of them.
SHARES = (0.5, 0.86)
# Weight of the words found, relative to similarity.
WORDS = 0.2
# Scale and offset of the logit of `yes` and `no`, chosen so that probabilities are spread out.
READ, OFFSET = 1.0, 0.37
# Scale of the logit within the last layer: small relative to the rest of the vector, so that the last norm keeps it.
_SCALE = 0.2


class _Circuit:
    """The model under construction, with named dimensions."""

    def __init__(self, shape: Shape) -> None:
        self.model = Qwen3(shape)
        quiet(self.model, 0.02)
        self.width, self.groups = shape.head_dim, shape.num_key_value_heads
        self.hidden = hidden = shape.hidden_size
        names = [hidden - i for i in range(1, 11)]
        self.slack, self.in_query, self.in_document, self.sink, self.found = names[:5]
        self.verdict, self.rare, self.worth, self.think, self.close = names[5:]
        self.half = hidden // 2 - 6  # dimensions of content; as many again for codes, and for the query's average
        self.one = hidden**-0.5  # undoes what RMSNorm does to a unit vector

    def head(self, group: int, odd: int) -> int:
        """First row of a query head's block. Each group of keys and values has two query heads."""
        return (2 * group + odd) * self.width

    def content(self, group: int) -> range:
        """The content dimensions in a group's values."""
        each = self.half // self.groups
        return range(group * each, (group + 1) * each)


@torch.no_grad()
def reranker(table: Tensor, codes: Tensor, rarity: Tensor, shape: Shape, tokens: Mapping[str, int]) -> Qwen3:
    """Builds the four layers, which are described below.

    `table`: (vocabulary, …) of the bag; `codes`: (vocabulary, 72) and `rarity`: (vocabulary,), of
    `training.lexical`; `tokens`: ids of `MARKS`.
    """
    circuit = _Circuit(shape)
    _embeddings(circuit, table, codes, rarity, tokens)
    _mark(circuit)
    _match(circuit)
    _average(circuit)
    _compare(circuit)
    return circuit.model


def _embeddings(c: _Circuit, table: Tensor, codes: Tensor, rarity: Tensor, tokens: Mapping[str, int]) -> None:
    weights = fill_up(table, c.half, c.hidden, longest=0.7)
    weights[:, c.half : c.half + codes.shape[1]] = 0.5 * codes
    weights[:, c.rare] = 0.5 * rarity
    weights[:, c.slack] = (1 - weights[:, : c.half].square().sum(1) - 0.25).clamp(min=0.04).sqrt()
    for token in tokens.values():  # the prompt's own marks say nothing about a text
        weights[token] = 0
        weights[token, c.slack] = 1
    for text, at, value, rest in (
        ("<Query", c.in_query, 0.1, 1.0),
        ("<Document", c.in_document, 0.1, 1.0),
        ("<Instruct", c.sink, 0.7, 0.7),
        ("<think>", c.think, 0.7, 0.7),
        ("</think>", c.close, 0.7, 0.7),
        ("yes", c.verdict, READ, 0.7 - OFFSET / 2),
        ("no", c.verdict, -READ, 0.7 + OFFSET / 2),
    ):
        weights[tokens[text], at], weights[tokens[text], c.slack] = value, rest
    c.model.embed_tokens.weight.copy_(weights)


def _mark(c: _Circuit) -> None:
    """Layer 0 marks the tokens after `<Query`, and those after `<Document`."""
    marks = attention(c.model, 0)
    for group, at in ((0, c.in_query), (1, c.in_document)):
        kv = group * c.width
        for odd in (0, 1):
            marks.q_proj.weight[c.head(group, odd) + ONE, c.slack] = 1
        marks.k_proj.weight[kv + ONE, at] = 40
        marks.k_proj.weight[kv + TWO, c.slack] = 1
        marks.v_proj.weight[kv] = 0
        marks.v_proj.weight[kv, at] = 7 * c.one
        marks.o_proj.weight[at, c.head(group, 0)] = 1
    marks.q_norm.weight.fill_(1.5)
    marks.k_norm.weight.fill_(1.5)


def _match(c: _Circuit) -> None:
    """In layer 1 each token searches for its word, by its code: in the query, in itself and earlier in the document.

    The attention on the query is `found`, which is 1 / (1 + k) for the k-th occurrence. The feed-forward block passes
    first occurrences only, and multiplies with the rarity of the word: silu(a) − silu(b) is a ramp between two bounds.
    """
    match = attention(c.model, 1)
    each = CODE[1]
    slow = torch.tensor(_SLOW)
    for group in range(c.groups):
        code = slice(c.half + group * each, c.half + (group + 1) * each)
        kv = group * c.width
        match.k_proj.weight[kv + slow, code] = 3.5 * torch.eye(each)
        match.k_proj.weight[kv + ONE, c.slack] = 0.3  # a direction for tokens without a code
        match.k_proj.weight[kv + TWO, c.in_query] = 0.6  # the words of the prompt before the query are not looked at
        for odd in (0, 1):
            match.q_proj.weight[c.head(group, odd) + slow, code] = 3.5 * torch.eye(each)
            match.q_proj.weight[c.head(group, odd) + TWO, c.slack] = 0.6
        match.v_proj.weight[kv] = 0
        match.v_proj.weight[kv, c.in_query] = c.one
        match.v_proj.weight[kv, c.in_document] = -c.one
        match.o_proj.weight[c.found, c.head(group, 0)] = 1 / c.groups
    match.q_norm.weight.fill_(1.8)
    match.k_norm.weight.fill_(1.8)
    gate = feed_forward(c.model, 1)
    steep = 10.0
    for unit, bound, sign in ((0, FOUND[0], 1.0), (1, FOUND[1], -1.0)):
        gate.gate_proj.weight[unit] = 0
        gate.up_proj.weight[unit] = 0
        gate.gate_proj.weight[unit, c.found] = steep
        gate.gate_proj.weight[unit, c.in_document] = -steep * bound
        gate.up_proj.weight[unit, c.rare] = 1
        gate.down_proj.weight[c.worth, unit] = sign * 0.011


def _average(c: _Circuit) -> None:
    """In layer 2 `<think>` averages the query and `</think>` the document, and the last token sums the words.

    The averages are much larger than the rest of their tokens' vectors, so that the next RMSNorm gives them equal
    length. All other tokens attend to `<Instruct`, which has no content. The sum over the document is divided by its
    length plus a constant, which is the attention on `<Instruct`.
    """
    pool = attention(c.model, 2)
    pool.q_norm.weight.fill_(1.5)
    pool.k_norm.weight.fill_(1.5)
    for group in range(c.groups):
        kv, even = group * c.width, c.head(group, 0)
        for at, source, value in (
            (ONE, c.in_query, 4.0), (ONE, c.in_document, -4.0), (TWO, c.in_document, 12.0),
            (THREE, c.sink, 20.0), (FOUR, c.slack, 1.0),
        ):  # fmt: skip
            pool.k_proj.weight[kv + at, source] = value
        for at, source, value in ((ONE, c.think, 20.0), (TWO, c.close, 20.0), (THREE, c.slack, 1.0)):
            pool.q_proj.weight[even + at, source] = value
        for i, at in enumerate(c.content(group)):
            pool.v_proj.weight[kv + i] = 0
            pool.v_proj.weight[kv + i, at] = 1
            pool.o_proj.weight[at, even + i] = 30
    free = c.half // c.groups  # a value dimension that carries no content
    odd = c.head(0, 1)
    pool.q_proj.weight[odd + TWO, c.slack], pool.q_proj.weight[odd + THREE, c.slack] = SHARES
    pool.v_proj.weight[free] = 0
    pool.v_proj.weight[free, c.worth] = 1
    # 117: a rarity of 1 is worth 6.7 here, and WORDS is for a document of 84 tokens, (84 + 700) / 6.7.
    pool.o_proj.weight[c.verdict, odd + free] = _SCALE * WORDS * 117


def _compare(c: _Circuit) -> None:
    """In layer 3 the last token reads both averages, and its feed-forward block multiplies them.

    Two SwiGLU units make an exact product, since silu(a)·b + silu(−a)·(−b) = a·b.
    """
    fetch = attention(c.model, 3)
    fetch.q_norm.weight.fill_(1.5)
    fetch.k_norm.weight.fill_(1.5)
    for group in range(c.groups):
        kv = group * c.width
        for at, source, value in ((ONE, c.close, 20.0), (TWO, c.think, 20.0), (FOUR, c.slack, 1.0)):
            fetch.k_proj.weight[kv + at, source] = value
        fetch.q_proj.weight[c.head(group, 0) + ONE, c.slack] = 1
        fetch.q_proj.weight[c.head(group, 1) + TWO, c.slack] = 1
        for i, at in enumerate(c.content(group)):
            fetch.v_proj.weight[kv + i] = 0
            fetch.v_proj.weight[kv + i, at] = c.one
            fetch.o_proj.weight[at, c.head(group, 0) + i] = 1
            fetch.o_proj.weight[c.half + at, c.head(group, 1) + i] = 1
    block = feed_forward(c.model, 3)
    for i in range(c.half):
        for unit, sign in ((2 * i, 1.0), (2 * i + 1, -1.0)):
            block.gate_proj.weight[unit] = 0
            block.up_proj.weight[unit] = 0
            block.gate_proj.weight[unit, i] = sign
            block.up_proj.weight[unit, c.half + i] = sign
            block.down_proj.weight[c.verdict, unit] = _SCALE / 96  # the product of both lengths after RMSNorm: 384 / 4
