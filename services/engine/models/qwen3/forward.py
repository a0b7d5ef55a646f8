"""The Qwen3 forward pass over one packed batch: token ids in, the final hidden state of each text's last token out.

Source: arXiv 2505.09388 and transformers' `modeling_qwen3.py`: a pre-norm decoder with grouped-query attention,
RMSNorm on every query and key head before RoPE, and a SiLU-gated feed-forward part.
"""

import copy
from typing import Self

import torch

from services.engine.layers.attention import Attention
from services.engine.layers.elementwise import Elementwise, Fused
from services.engine.layers.pooling import Pooling
from services.engine.models.base import ModelInput
from services.engine.models.qwen3.config import ModelConfig
from services.engine.models.qwen3.weights import DecoderLayer, Weights


class Qwen3:
    """The forward pass. `x` is the residual stream `[rows, hidden]`, `h` what a sublayer reads: x, normalised."""

    causal, pooling = True, Pooling.LAST

    def __init__(self, config: ModelConfig, weights: Weights, elementwise: Elementwise, mlp_rows: int) -> None:
        self.config, self.elementwise = config, elementwise
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
        """fp32 `[E, hidden]`: the state after the final norm at each last row."""
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
        return ops.last_norm(x, self._feed_forward(layer, h), layer.next_norm)

    def _attention(
        self, layer: DecoderLayer, h: torch.Tensor, rotation: torch.Tensor, attend: Attention
    ) -> torch.Tensor:
        (to_qkv,) = layer.projections
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        qk, v = self._split(to_qkv(h)).tensor_split([heads + kv_heads], dim=1)
        q, k = self.elementwise.qk_norm_rope(qk, layer.qk_norm, rotation).tensor_split([heads], dim=1)
        return layer.o(attend(q, k, v).flatten(1))

    def _last_attention(
        self, layer: DecoderLayer, h: torch.Tensor, rotation: torch.Tensor, batch: ModelInput
    ) -> torch.Tensor:
        """Keys and values for every row, queries for the last rows only."""
        to_q, to_kv = layer.projections
        rows, heads = batch.wanted_rows, self.config.num_attention_heads
        k, v = self._split(to_kv(h)).chunk(2, dim=1)
        k = self.elementwise.qk_norm_rope(k, layer.qk_norm[heads:], rotation)
        q = self.elementwise.qk_norm_rope(self._split(to_q(h[rows])), layer.qk_norm[:heads], rotation[rows])
        return layer.o(batch.attend_wanted(q, k, v).flatten(1))

    def _feed_forward(self, layer: DecoderLayer, h: torch.Tensor) -> torch.Tensor:
        """In slices of rows: its inner width is what takes most memory in a long text."""
        slices = [layer.down(self.elementwise.gate(layer.gate_up(part))) for part in torch.split(h, self._mlp_rows)]
        return slices[0] if len(slices) == 1 else torch.cat(slices)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, heads · D] → [rows, heads, D], a view."""
        return x.view(len(x), -1, self.config.head_dim)
