"""The Qwen3 forward pass over one packed batch: token ids in, the final hidden state of each text's last token out."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from services.engine.attention import Attention
from services.engine.checkpoint import Checkpoint
from services.engine.config import ModelConfig
from services.engine.linear import Linear, LinearFormat


@dataclass(frozen=True, slots=True)
class Batch:
    """What the forward pass reads. T rows, E of them last tokens."""

    ids: torch.Tensor  # [T] int
    positions: torch.Tensor  # [T] int
    last_rows: torch.Tensor  # [E] int
    attend: Attention  # every row over the keys it may see
    attend_last: Attention  # the last rows only


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. Query and key heads are normalised and rotated together: one weight [heads + kv_heads, D]."""

    input_norm: torch.Tensor
    projections: tuple[Linear, ...]  # (qkv,); in the last layer (q, kv), since few rows need a query there
    qk_norm: torch.Tensor
    o: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class Qwen3:
    """Weights and forward pass. Computes in `dtype`; norms and rotation accumulate in fp32."""

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, linear: LinearFormat, max_tokens: int
    ) -> None:
        config = checkpoint.config
        self.device, self.dtype = device, dtype
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim, self._eps = config.head_dim, config.rms_norm_eps
        loader = _Loader(checkpoint, device, dtype, linear)
        self._embedding = loader.embedding()
        self._layers = [loader.layer(i) for i in range(config.num_hidden_layers)]
        self._norm = loader.vector("norm.weight", config.hidden_size)
        self._rotation = rotation_table(config, max_tokens).to(device)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> torch.Tensor:
        """fp32 `[E, hidden]`: the state after the final norm at each last row."""
        x = self._embedding[batch.ids].to(self.dtype)
        rotation = self._rotation[batch.positions].unsqueeze(1)
        for layer in self._layers[:-1]:
            x = self._layer(layer, x, rotation, batch.attend)
        x = self._last_layer(self._layers[-1], x, rotation, batch.last_rows, batch.attend_last)
        return self._rms(x, self._norm).float()

    def _layer(self, layer: Layer, x: torch.Tensor, rotation: torch.Tensor, attend: Attention) -> torch.Tensor:
        (qkv,) = layer.projections
        h = self._split_heads(qkv(self._rms(x, layer.input_norm)))
        qk, v = h.tensor_split([self._heads + self._kv_heads], dim=1)
        q, k = self._rotate_(qk, layer.qk_norm, rotation).tensor_split([self._heads], dim=1)
        x += layer.o(attend(q, k, v).flatten(1))
        x += self._mlp(layer, x)
        return x

    def _last_layer(
        self, layer: Layer, x: torch.Tensor, rotation: torch.Tensor, rows: torch.Tensor, attend: Attention
    ) -> torch.Tensor:
        """Keys and values for every row, everything else for the last rows only."""
        to_q, to_kv = layer.projections
        h = self._rms(x, layer.input_norm)
        k, v = self._split_heads(to_kv(h)).chunk(2, dim=1)
        k = self._rotate_(k, layer.qk_norm[self._heads :], rotation)
        q = self._rotate_(self._split_heads(to_q(h[rows])), layer.qk_norm[: self._heads], rotation[rows])
        x = x[rows]
        x += layer.o(attend(q, k, v).flatten(1))
        x += self._mlp(layer, x)
        return x

    def _mlp(self, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        gate, up = layer.gate_up(self._rms(x, layer.mlp_norm)).chunk(2, dim=1)
        return layer.down(F.silu(gate, inplace=True).mul_(up))

    def _rms(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (x * self._inverse_rms(x)).mul_(weight)

    def _inverse_rms(self, x: torch.Tensor) -> torch.Tensor:
        """fp32 1 / sqrt(mean(x²) + eps) over the last axis. On the CPU one pass where F.rms_norm takes five."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return norm.square_().div_(x.shape[-1]).add_(self._eps).rsqrt_()

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), -1, self._head_dim)

    def _rotate_(self, x: torch.Tensor, norm: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """In place: per-head RMSNorm, then RoPE as one complex product (see `_interleave`). x: [rows, heads, D]."""
        x.mul_(self._inverse_rms(x)).mul_(norm)
        torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(rotation)
        return x


def rotation_table(config: ModelConfig, length: int) -> torch.Tensor:
    """RoPE (arXiv 2104.09864): exp(i · position · theta^(-2j/D)), complex64 `[length, D/2]`."""
    # In fp32, as the reference does: at position 30,000 an angle rounded otherwise is off by a thousandth.
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), 1.0 / config.rope_theta**exponents)
    return torch.polar(torch.ones_like(angles), angles)


class _Loader:
    """Reads a checkpoint's tensors into the layout the forward pass wants."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, linear: LinearFormat) -> None:
        self._checkpoint, self._config = checkpoint, checkpoint.config
        self._device, self._dtype, self._linear = device, dtype, linear

    def embedding(self) -> torch.Tensor:
        """[vocabulary, hidden], as stored: rows are looked up, then widened."""
        shape = (self._config.vocab_size, self._config.hidden_size)
        return self._checkpoint.tensor("embed_tokens.weight", shape).to(self._device)

    def vector(self, name: str, size: int) -> torch.Tensor:
        return self._checkpoint.tensor(name, (size,)).to(self._device, self._dtype)

    def layer(self, index: int) -> Layer:
        c, at = self._config, f"layers.{index}."
        heads, kv_heads, hidden, inner = (
            c.num_attention_heads,
            c.num_key_value_heads,
            c.hidden_size,
            c.intermediate_size,
        )

        def weight(name: str, rows: int, columns: int) -> torch.Tensor:
            return self._checkpoint.tensor(f"{at}{name}.weight", (rows, columns))

        q = _interleave(weight("self_attn.q_proj", heads * c.head_dim, hidden), c.head_dim)
        k = _interleave(weight("self_attn.k_proj", kv_heads * c.head_dim, hidden), c.head_dim)
        v = weight("self_attn.v_proj", kv_heads * c.head_dim, hidden)
        last = index == c.num_hidden_layers - 1
        projections = (q, torch.cat([k, v])) if last else (torch.cat([q, k, v]),)
        q_norm, k_norm = (
            _interleave(self.vector(f"{at}self_attn.{name}.weight", c.head_dim), c.head_dim)
            for name in ("q_norm", "k_norm")
        )
        return Layer(
            input_norm=self.vector(f"{at}input_layernorm.weight", hidden),
            projections=tuple(map(self._linear, projections)),
            qk_norm=torch.cat([q_norm.expand(heads, -1), k_norm.expand(kv_heads, -1)]),
            o=self._linear(weight("self_attn.o_proj", hidden, heads * c.head_dim)),
            mlp_norm=self.vector(f"{at}post_attention_layernorm.weight", hidden),
            gate_up=self._linear(torch.cat([weight(f"mlp.{name}_proj", inner, hidden) for name in ("gate", "up")])),
            down=self._linear(weight("mlp.down_proj", hidden, inner)),
        )


def _interleave(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorders each head's rows from (re 0…D/2, im 0…D/2) to (re, im) pairs, so that RoPE is a complex product.

    Queries and keys are reordered alike, which leaves their dot products as they were.
    """
    return x.view(-1, 2, head_dim // 2, *x.shape[1:]).transpose(1, 2).flatten(0, 2)
