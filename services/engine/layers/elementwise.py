"""The parts of the forward pass between the matrix products: norms, rotation, gating.

They are bound by memory, so what counts is how often a value travels. Two ways to keep that low: in place, or fused.
"""

from typing import Protocol

import torch
import torch.nn.functional as F


class Elementwise(Protocol):
    """Arguments may be overwritten. x, delta: `[rows, hidden]`; x is the residual stream."""

    @property
    def residual(self) -> torch.dtype:
        """Dtype of x and of the weights of norms. Everything else is of the model's own dtype."""

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm (arXiv 1910.07467): x / sqrt(mean(x²) + eps) · weight. Leaves x as it is."""

    def add_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x + delta, and that normalised."""

    def last_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x + delta, normalised, in fp32: what the head reads."""

    def qk_norm_rope(self, heads: torch.Tensor, weight: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """RMSNorm over each head, then RoPE.

        heads: `[rows, heads, D]`, (re, im) pairs side by side (see `weights.interleave`); weight: `[heads, D]`;
        rotation: `[rows, 1, D/2, 2]`.
        """

    def rope(self, heads: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """RoPE alone."""

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """SiLU(gate) · up, of `[rows, 2 · inner]`."""


class InPlace:
    """fp32 on the CPU."""

    residual = torch.float32

    def __init__(self, eps: float) -> None:
        self._eps = eps

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return (x * self._inverse_rms(x)).mul_(weight)

    def add_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Elementwise."""
        return x.add_(delta), self.norm(x, weight)

    def last_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return self.norm(x.add_(delta), weight)

    def qk_norm_rope(self, heads: torch.Tensor, weight: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return _rope_in_place(heads.mul_(self._inverse_rms(heads)).mul_(weight), rotation)

    def rope(self, heads: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return _rope_in_place(heads, rotation)

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        gate, up = gate_up.chunk(2, dim=1)
        return F.silu(gate, inplace=True).mul_(up)

    def _inverse_rms(self, x: torch.Tensor) -> torch.Tensor:
        """One pass over x; F.rms_norm takes five on the CPU."""
        norm: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return norm.square_().div_(x.shape[-1]).add_(self._eps).rsqrt_()


class Mixed(InPlace):
    """Activations in 16 bits on the CPU; the residual stream, statistics and the last norm in fp32.

    What passes from product to product is rounded once. The residual stream is not: it adds up all layers.
    """

    def __init__(self, eps: float, dtype: torch.dtype) -> None:
        super().__init__(eps)
        self._dtype = dtype

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return super().norm(x, weight).to(self._dtype)

    def last_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return super().norm(x.add_(delta), weight)

    def qk_norm_rope(self, heads: torch.Tensor, weight: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return super().qk_norm_rope(heads.float(), weight, rotation).to(self._dtype)

    def rope(self, heads: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return super().rope(heads.float(), rotation).to(self._dtype)


class Fused:
    """Any device and dtype, accumulating in fp32. `compiled`: each method becomes one kernel, on its first calls."""

    def __init__(self, eps: float, dtype: torch.dtype, *, compiled: bool = False) -> None:
        self._eps, self.residual = eps, dtype
        self._norm, self._add_norm, self._gate = _norm, _add_norm, _gate
        self._qk_norm_rope, self._rope = _qk_norm_rope, _rope
        if compiled:
            self._norm = torch.compile(_norm, dynamic=True)
            self._add_norm = torch.compile(_add_norm, dynamic=True)
            self._qk_norm_rope = torch.compile(_qk_norm_rope, dynamic=True)
            self._rope = torch.compile(_rope, dynamic=True)
            self._gate = torch.compile(_gate, dynamic=True)

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return self._norm(x, weight, self._eps)

    def add_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Elementwise."""
        return self._add_norm(x, delta, weight, self._eps)

    def last_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return self._add_norm(x, delta, weight, self._eps)[1].float()

    def qk_norm_rope(self, heads: torch.Tensor, weight: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return self._qk_norm_rope(heads, weight, rotation, self._eps)

    def rope(self, heads: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return self._rope(heads, rotation)

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        return self._gate(gate_up)


def _rope_in_place(heads: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2))
    pairs.mul_(torch.view_as_complex(rotation))
    return heads


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _add_norm(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    x = x + delta
    return x, _norm(x, weight, eps)


def _qk_norm_rope(heads: torch.Tensor, weight: torch.Tensor, rotation: torch.Tensor, eps: float) -> torch.Tensor:
    x = heads.float()
    return _rope(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float(), rotation).to(heads.dtype)


def _rope(heads: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    re, im = heads.float().view(*heads.shape[:-1], -1, 2).unbind(-1)
    cos, sin = rotation.unbind(-1)
    return torch.stack([re * cos - im * sin, re * sin + im * cos], dim=-1).flatten(-2).to(heads.dtype)


def _gate(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up
