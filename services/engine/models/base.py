"""What the engine needs of a model family: a forward pass over one packed batch, and a head on its last states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F

from services.engine.layers.attention import Attention

Head = Callable[[torch.Tensor], torch.Tensor]
"""`fp32 [E, hidden] -> fp32 [E, width]`."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What a forward pass reads. T rows, E of them last tokens."""

    ids: torch.Tensor  # [T] int
    positions: torch.Tensor  # [T] int
    last_rows: torch.Tensor  # [E] int
    attend: Attention  # every row over the keys it may see
    attend_last: Attention  # the last rows only


class Model(Protocol):
    """A loaded model. Devices know no more of it than this."""

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""

    def __call__(self, batch: ModelInput) -> torch.Tensor:
        """fp32 `[E, hidden]`: the final hidden state of each text's last token."""

    def compiled(self) -> Self:
        """The same model over the same weights, with kernels that are compiled on their first calls."""


def unit_vectors(hidden: torch.Tensor) -> torch.Tensor:
    """L2-normalised embeddings, `[E, hidden]`."""
    return F.normalize(hidden, dim=-1)
