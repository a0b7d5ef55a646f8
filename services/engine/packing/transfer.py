"""A packed batch's integers as one flat buffer: one copy to the device instead of nine."""

from typing import NamedTuple

import numpy as np
import torch

from services.engine.layers.attention.cuda import Ragged, Varlen, varlen
from services.engine.models.base import ModelInput
from services.engine.packing.packing import Packed
from services.engine.types import Ids

_ALIGN = 4  # int32 words: kernels like 16-byte addresses


class Layout(NamedTuple):
    """Where each array lies in the buffer: (offset, length) in int32 words. Absent arrays have length 0."""

    ids: tuple[int, int]
    positions: tuple[int, int]
    wanted_rows: tuple[int, int]
    starts: tuple[int, int]
    cu_q: tuple[int, int]
    cu_k: tuple[int, int]
    cu_wanted: tuple[int, int]
    kv_index: tuple[int, int]

    @property
    def words(self) -> int:
        """Length of the buffer."""
        offset, length = self[-1]
        return offset + length


def lay_out(packed: Packed) -> Layout:
    """Offsets for the arrays of `packed`, one after another, each aligned."""
    places: list[tuple[int, int]] = []
    offset = 0
    for array in _arrays(packed):
        places.append((offset, len(array)))
        offset += -(-len(array) // _ALIGN) * _ALIGN
    return Layout(*places)


def write(packed: Packed, layout: Layout, buffer: Ids) -> None:
    """Copies the arrays into `buffer` `[≥ layout.words]`."""
    for array, (offset, length) in zip(_arrays(packed), layout, strict=True):
        buffer[offset : offset + length] = array


def read(packed: Packed, layout: Layout, buffer: torch.Tensor, *, causal: bool, kernel: Varlen = varlen) -> ModelInput:
    """The batch as views of `buffer`, an int32 tensor on the device."""

    def view(place: tuple[int, int]) -> torch.Tensor:
        return buffer[place[0] : place[0] + place[1]]

    kv_index = view(layout.kv_index) if packed.kv_index is not None else None
    cu_k = view(layout.cu_k)
    return ModelInput(
        ids=view(layout.ids),
        positions=view(layout.positions),
        wanted_rows=view(layout.wanted_rows),
        starts=view(layout.starts),
        attend=Ragged(view(layout.cu_q), cu_k, kv_index, packed.max_q, packed.max_k, causal, kernel),
        attend_wanted=Ragged(view(layout.cu_wanted), cu_k, kv_index, packed.max_wanted, packed.max_k, causal, kernel),
    )


def _arrays(packed: Packed) -> tuple[Ids, ...]:
    nothing = np.empty(0, np.int32)
    index = packed.kv_index if packed.kv_index is not None else nothing
    return (
        *(packed.ids, packed.positions, packed.wanted_rows, packed.starts),
        *(packed.cu_q, packed.cu_k, packed.cu_wanted, index),
    )
