"""Qwen3 in plain float32 PyTorch, for training. Parameters are named as in Hugging Face; prefixes are computed once.

The computation is that of `transformers.models.qwen3`: RMSNorm before each block, RMSNorm of each query and key head
before rotary positions, grouped-query attention, SwiGLU, a final RMSNorm. The last layer is computed for the last
tokens only. A test compares the results with transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen3 architecture, named as in config.json."""

    vocab_size: int = 16384
    hidden_size: int = 384
    intermediate_size: int = 512
    num_hidden_layers: int = 3
    num_attention_heads: int = 6
    num_key_value_heads: int = 3
    head_dim: int = 64
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    max_position_embeddings: int = 32768

    def config(self) -> dict[str, Any]:
        """The entries of config.json that depend on the shape."""
        return asdict(self)


@dataclass(slots=True)
class Context:
    """Keys and values that later tokens attend to.

    `layers`: keys and values of each layer, both (rows, kv heads, tokens, head_dim). `rows` is 1 (shared by all later
    rows) or a divisor of the number of later rows (each shared by consecutive rows). `mask`: (rows, tokens), true for
    tokens and false for padding. `lengths`: (rows,), the number of tokens.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    lengths: Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


class Attention(nn.Module):
    """Projections and head norms of one layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        inner = shape.num_attention_heads * shape.head_dim
        kv = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(inner, shape.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, shape.rms_norm_eps)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, hidden) → (…, hidden)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)


class Qwen3(nn.Module):
    """The decoder without a head. `state_dict` uses the names of Qwen3Model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)

    def forward(
        self, ids: Tensor, lengths: Tensor, contexts: Sequence[Context] = (), keep: bool = False
    ) -> tuple[Tensor, Context | None]:
        """Runs right-padded token rows.

        `ids`: (rows, tokens); `lengths`: (rows,). Returns the hidden states of the last tokens after the final norm,
        (rows, hidden). With `keep`, returns an empty tensor, and the keys and values of the rows as a context.
        """
        rows, tokens = ids.shape
        start = sum((_spread(c.lengths, rows) for c in contexts), torch.zeros(rows, dtype=torch.long))
        cos, sin = self._rotary(start[:, None] + torch.arange(tokens))
        biases = [_spread(_bias(c.mask), rows)[:, None, None, :] for c in contexts]
        mask = torch.arange(tokens) < lengths[:, None]
        own = torch.full((tokens, tokens), float("-inf")).triu(1)
        last = lengths - 1
        at = torch.arange(rows)
        x = self.embed_tokens(ids)
        kept: list[tuple[Tensor, Tensor]] = []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            final = number == len(self.layers) - 1 and not keep
            h = layer.input_layernorm(x)
            k = layer.self_attn.k_norm(self._heads(layer.self_attn.k_proj(h)))
            k = _rotate(k, cos, sin).transpose(1, 2)
            v = self._heads(layer.self_attn.v_proj(h)).transpose(1, 2)
            kept.append((k, v))
            if number == len(self.layers) - 1 and keep:
                break
            bias, c, s = own, cos, sin
            if final:
                h, x = h[at, last][:, None], x[at, last][:, None]
                c, s = cos[at, last][:, None], sin[at, last][:, None]
                bias = _bias(mask)[:, None, None, :]
            q = layer.self_attn.q_norm(self._heads(layer.self_attn.q_proj(h)))
            q = _rotate(q, c, s).transpose(1, 2)
            past = [(*pair.layers[number], b) for pair, b in zip(contexts, biases, strict=True)]
            x = x + layer.self_attn.o_proj(self._attend(q, [*past, (k, v, bias)]))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        if keep:
            return x.new_empty(0), Context(kept, mask, lengths)
        out: Tensor = self.norm(x[:, 0])
        return out, None

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.shape.head_dim)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        half = torch.arange(0, self.shape.head_dim, 2, dtype=torch.float32) / self.shape.head_dim
        angle = positions[..., None].float() * self.shape.rope_theta**-half
        angle = torch.cat([angle, angle], -1)[:, :, None, :]
        return angle.cos(), angle.sin()

    def _attend(self, q: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Softmax attention over several runs of keys. `q`: (rows, heads, tokens, head_dim) → (rows, tokens, …)."""
        rows, heads, tokens, width = q.shape
        groups = self.shape.num_key_value_heads
        q = q.reshape(rows, groups, heads // groups, tokens, width) * width**-0.5
        scores = []
        for k, _, bias in parts:
            part = _shared_matmul(q, k.transpose(-1, -2))
            scores.append(part + (bias[:, :, None] if bias.dim() == 4 else bias))
        weights = torch.split(torch.cat(scores, -1).softmax(-1), [s.shape[-1] for s in scores], -1)
        out = sum(_shared_matmul(w, v) for w, (_, v, _) in zip(weights, parts, strict=True))
        assert isinstance(out, Tensor)
        return out.reshape(rows, heads, tokens, width).transpose(1, 2).flatten(2)


def _shared_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` for a: (rows, groups, heads, m, n) and b: (rows / r, groups, n, p), each b used by r rows of a."""
    rows, groups, heads, m, n = a.shape
    few = b.shape[0]
    each = rows // few
    if each == 1:
        return (a.reshape(rows, groups, heads * m, n) @ b).reshape(rows, groups, heads, m, -1)
    a = a.reshape(few, each, groups, heads * m, n).transpose(1, 2).reshape(few, groups, each * heads * m, n)
    return (a @ b).reshape(few, groups, each, heads, m, -1).transpose(1, 2).reshape(rows, groups, heads, m, -1)


def _spread(x: Tensor, rows: int) -> Tensor:
    return x.repeat_interleave(rows // x.shape[0], 0)


def _bias(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def pad(texts: Sequence[Sequence[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Right-padded ids (rows, longest) and lengths (rows,)."""
    lengths = torch.tensor([len(t) for t in texts])
    ids = torch.full((len(texts), int(lengths.max())), value)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.as_tensor(text)
    return ids, lengths
