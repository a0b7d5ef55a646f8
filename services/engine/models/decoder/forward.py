"""The forward pass of a decoder over one packed batch: token ids in, one pooled final hidden state of each text out.

Source: arXiv 2505.09388, 2407.10671 and transformers' `modeling_qwen3.py`, `modeling_qwen2.py`: a pre-norm decoder with
grouped-query attention, RoPE and a SiLU-gated feed-forward part. Qwen3 normalises every query and key head before RoPE;
Qwen2 has biases on queries, keys and values instead.
"""

import copy
from typing import Self

import torch

from services.engine.layers.attention import Attention
from services.engine.layers.elementwise import Elementwise, Fused
from services.engine.layers.pooling import Pooling, pool
from services.engine.models.base import ModelInput
from services.engine.models.decoder.config import DecoderConfig
from services.engine.models.decoder.weights import DecoderLayer, Weights


class Decoder:
    """The forward pass. `x` is the residual stream `[rows, hidden]`, `h` what a sublayer reads: x, normalised."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights,
        elementwise: Elementwise,
        mlp_rows: int,
        *,
        causal: bool = True,
        pooling: Pooling = Pooling.LAST,
    ) -> None:
        self.config, self.elementwise, self.causal, self.pooling = config, elementwise, causal, pooling
        self._weights, self._mlp_rows = weights, mlp_rows

    @property
    def hidden_size(self) -> int:
        """See Model."""
        return self.config.hidden_size

    def compiled(self) -> Self:
        """See Model."""
        model = copy.copy(self)
        model.elementwise = Fused(self.config.rms_norm_eps, self.elementwise.residual, compiled=True)
        return model

    @torch.inference_mode()
    def __call__(self, batch: ModelInput) -> torch.Tensor:
        """fp32 `[E, hidden]`: the states after the final norm, pooled."""
        weights, ops = self._weights, self.elementwise
        x = weights.embedding[batch.ids].to(ops.residual)
        rotation = weights.rotation[batch.positions]
        h = ops.norm(x, weights.first_norm)
        for layer in weights.layers[:-1]:
            x, h = ops.add_norm(x, self._attention(layer, h, rotation, batch.attend), layer.mlp_norm)
            x, h = ops.add_norm(x, self._feed_forward(layer, h), layer.next_norm)
        layer = weights.layers[-1]
        attended = self._last_attention(layer, h, rotation, batch)
        x, h = ops.add_norm(x[batch.wanted_rows], attended, layer.mlp_norm)
        states = ops.last_norm(x, self._feed_forward(layer, h), layer.next_norm)
        return pool(states, batch.starts, self.pooling)

    def _attention(
        self, layer: DecoderLayer, h: torch.Tensor, rotation: torch.Tensor, attend: Attention
    ) -> torch.Tensor:
        (to_qkv,), (norm,) = layer.projections, layer.norms
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        qk, v = self._split(to_qkv(h)).tensor_split([heads + kv_heads], dim=1)
        q, k = self._rotate(qk, norm, rotation).tensor_split([heads], dim=1)
        return layer.o(attend(q, k, v).flatten(1))

    def _last_attention(
        self, layer: DecoderLayer, h: torch.Tensor, rotation: torch.Tensor, batch: ModelInput
    ) -> torch.Tensor:
        """Keys and values for every row, queries for the wanted rows only."""
        (to_q, to_kv), (q_norm, k_norm), rows = layer.projections, layer.norms, batch.wanted_rows
        k, v = self._split(to_kv(h)).chunk(2, dim=1)
        k = self._rotate(k, k_norm, rotation)
        q = self._rotate(self._split(to_q(h[rows])), q_norm, rotation[rows])
        return layer.o(batch.attend_wanted(q, k, v).flatten(1))

    def _rotate(self, heads: torch.Tensor, norm: torch.Tensor | None, rotation: torch.Tensor) -> torch.Tensor:
        ops = self.elementwise
        return ops.rope(heads, rotation) if norm is None else ops.qk_norm_rope(heads, norm, rotation)

    def _feed_forward(self, layer: DecoderLayer, h: torch.Tensor) -> torch.Tensor:
        """In slices of rows: its inner width is what takes most memory in a long text."""
        slices = [layer.down(self.elementwise.gate(layer.gate_up(part))) for part in torch.split(h, self._mlp_rows)]
        return slices[0] if len(slices) == 1 else torch.cat(slices)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, heads · D] → [rows, heads, D], a view."""
        return x.view(len(x), -1, self.config.head_dim)
