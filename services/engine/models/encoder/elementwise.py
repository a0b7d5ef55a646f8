"""The parts of an encoder's layer between the matrix products: normalisation of sums, and the activation.

Next to the products they cost some hundredths of the time, so that little is gained by anything but few passes.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

_ERF = partial(F.gelu, approximate="none")
_TANH = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": _ERF,
    "gelu_python": _ERF,
    # Names of one formula (Hendrycks and Gimpel, arXiv 1606.08415).
    "gelu_new": _TANH,
    "gelu_fast": _TANH,
    "gelu_pytorch_tanh": _TANH,
    "gelu_accurate": _TANH,
    "relu": F.relu,
}
"""By the names that config.json has for them."""

Norm = tuple[torch.Tensor, torch.Tensor]
"""Weight and bias of a LayerNorm (arXiv 1607.06450), each `[hidden]`, in the residual stream's dtype."""


class Elementwise:
    """`residual`: dtype of the residual stream and of the norms; `dtype`: of what the products read."""

    def __init__(
        self, eps: float, activation: str, residual: torch.dtype, dtype: torch.dtype, *, compiled: bool = False
    ) -> None:
        self.residual, self._eps, self._dtype = residual, eps, dtype
        self.activate = ACTIVATIONS[activation]
        """The activation of a feed-forward layer."""
        self._arguments = eps, activation, residual, dtype
        self._norm, self._add_norm = _norm, _add_norm
        if compiled:
            self._norm = torch.compile(_norm, dynamic=True)
            self._add_norm = torch.compile(_add_norm, dynamic=True)
            self.activate = torch.compile(self.activate, dynamic=True)

    def compiled(self) -> "Elementwise":
        """The same; each method becomes one kernel, on its first calls."""
        return Elementwise(*self._arguments, compiled=True)

    def norm(self, x: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """`x [rows, hidden]`, normalised: for the residual stream, and for the next product."""
        return self._both(self._norm(x, *norm, self._eps))

    def add_norm(self, x: torch.Tensor, delta: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of `x + delta`."""
        return self._both(self._add_norm(x, delta, *norm, self._eps))

    def _both(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x.to(self._dtype)


def _norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _add_norm(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    return _norm(x + delta, weight, bias, eps)
