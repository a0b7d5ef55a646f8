"""The forward pass of BERT and the RoBERTas over one packed batch: token ids in, each text's pooled state out.

Source: arXiv 1810.04805 and transformers' `modeling_bert.py`: every token sees the whole text, sums are normalised
after each sublayer, positions are learned.
"""

import copy
from typing import Self

import torch

from services.engine.layers.pooling import Pooling, pool
from services.engine.models.base import ModelInput
from services.engine.models.encoder.config import EncoderConfig
from services.engine.models.encoder.elementwise import Elementwise
from services.engine.models.encoder.weights import EncoderLayer, Weights


class Encoder:
    """The forward pass. `x` is the residual stream `[rows, hidden]`, `h` the same as the products read it.

    A token of type t has the id `id + t · vocabulary`.
    """

    causal = False

    def __init__(
        self, config: EncoderConfig, weights: Weights, elementwise: Elementwise, pooling: Pooling, mlp_rows: int
    ) -> None:
        self.config, self.elementwise, self.pooling = config, elementwise, pooling
        self._weights, self._mlp_rows = weights, mlp_rows
        self._max_tokens = len(weights.places) // config.type_vocab_size

    @property
    def hidden_size(self) -> int:
        """See Model."""
        return self.config.hidden_size

    def compiled(self) -> Self:
        """See Model."""
        model = copy.copy(self)
        model.elementwise = self.elementwise.compiled()
        return model

    @torch.inference_mode()
    def __call__(self, batch: ModelInput) -> torch.Tensor:
        """See Model."""
        weights, ops = self._weights, self.elementwise
        x, h = ops.norm(self._embed(batch), weights.norm)
        for layer in weights.layers[:-1]:
            x, h = ops.add_norm(x, self._attention(layer, h, batch), layer.attention_norm)
            x, h = ops.add_norm(x, self._feed_forward(layer, h), layer.output_norm)
        layer = weights.layers[-1]
        if self.pooling is Pooling.MEAN:
            attended = self._attention(layer, h, batch)
        else:
            attended, x = self._wanted_attention(layer, h, batch), x[batch.wanted_rows]
        x, h = ops.add_norm(x, attended, layer.attention_norm)
        x, _ = ops.add_norm(x, self._feed_forward(layer, h), layer.output_norm)
        return pool(x.float(), batch.starts, self.pooling)

    def _embed(self, batch: ModelInput) -> torch.Tensor:
        weights, vocabulary = self._weights, self.config.vocab_size
        ids, places = batch.ids, batch.positions
        if self.config.type_vocab_size > 1:
            places = places + torch.div(ids, vocabulary, rounding_mode="floor") * self._max_tokens
            ids = torch.remainder(ids, vocabulary)
        return weights.embedding[ids].to(self.elementwise.residual) + weights.places[places]

    def _attention(self, layer: EncoderLayer, h: torch.Tensor, batch: ModelInput) -> torch.Tensor:
        (to_qkv,) = layer.projections
        q, k, v = self._split(to_qkv(h)).chunk(3, dim=1)
        return layer.o(batch.attend(q, k, v).flatten(1))

    def _wanted_attention(self, layer: EncoderLayer, h: torch.Tensor, batch: ModelInput) -> torch.Tensor:
        """Keys and values for every row, queries for the wanted rows only."""
        to_q, to_kv = layer.projections
        k, v = self._split(to_kv(h)).chunk(2, dim=1)
        q = self._split(to_q(h[batch.wanted_rows]))
        return layer.o(batch.attend_wanted(q, k, v).flatten(1))

    def _feed_forward(self, layer: EncoderLayer, h: torch.Tensor) -> torch.Tensor:
        """In slices of rows: its inner width is what takes most memory in a long text."""
        activate = self.elementwise.activate
        slices = [layer.down(activate(layer.up(part))) for part in torch.split(h, self._mlp_rows)]
        return slices[0] if len(slices) == 1 else torch.cat(slices)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, heads · D] → [rows, heads, D], a view."""
        return x.view(len(x), -1, self.config.head_dim)
