"""A packed batch's integers as one flat buffer: one copy to the device instead of eight."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from services.engine.layers.attention.cuda import Ragged, Varlen, varlen
from services.engine.models.qwen3.forward import Batch
from services.engine.packing.packing import Packed
from services.engine.types import Ids

_ALIGN = 4  # int32 words: kernels like 16-byte addresses


class Layout(NamedTuple):
    """Where each array lies in the buffer: (offset, length) in int32 words. Absent arrays have length 0."""

    ids: tuple[int, int]
    positions: tuple[int, int]
    last_rows: tuple[int, int]
    cu_q: tuple[int, int]
    cu_k: tuple[int, int]
    cu_last: tuple[int, int]
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


def read(packed: Packed, layout: Layout, buffer: torch.Tensor, kernel: Varlen = varlen) -> Batch:
    """The batch as views of `buffer`, an int32 tensor on the device."""

    def view(place: tuple[int, int]) -> torch.Tensor:
        return buffer[place[0] : place[0] + place[1]]

    kv_index = view(layout.kv_index) if packed.kv_index is not None else None
    cu_k = view(layout.cu_k)
    return Batch(
        ids=view(layout.ids),
        positions=view(layout.positions),
        last_rows=view(layout.last_rows),
        attend=Ragged(view(layout.cu_q), cu_k, kv_index, packed.max_q, packed.max_k, kernel),
        attend_last=Ragged(view(layout.cu_last), cu_k, kv_index, 1, packed.max_k, kernel),
    )


def _arrays(packed: Packed) -> tuple[Ids, ...]:
    nothing = np.empty(0, np.int32)
    index = packed.kv_index if packed.kv_index is not None else nothing
    return packed.ids, packed.positions, packed.last_rows, packed.cu_q, packed.cu_k, packed.cu_last, index


@dataclass(eq=False, slots=True)
class Slot:
    """Page-locked host memory for one batch in flight: integers on their way in, results on their way out."""

    ints: torch.Tensor
    out: torch.Tensor

    @classmethod
    def of(cls, words: int, values: int, *, pin: bool) -> "Slot":
        """Room for `words` int32 and `values` float32."""
        return cls(
            torch.empty(words, dtype=torch.int32, pin_memory=pin),
            torch.empty(values, dtype=torch.float32, pin_memory=pin),
        )


class BufferPool:
    """Reuses slots: page-locking memory for every batch would cost more than the copy.

    `take` and `give` may be called from different threads. A slot too small is replaced by one with room to spare.
    """

    def __init__(self, size: int, *, pin: bool) -> None:
        self._pin = pin
        self._free: list[Slot] = [Slot.of(1 << 12, 1 << 12, pin=pin) for _ in range(size)]

    def take(self, words: int, values: int) -> Slot:
        """A slot nobody else uses, with at least that much room; a fresh one if all are taken."""
        slot = self._free.pop() if self._free else Slot.of(words, values, pin=self._pin)
        if len(slot.ints) < words or len(slot.out) < values:
            slot = Slot.of(_roomy(words), _roomy(values), pin=self._pin)
        return slot

    def give(self, slot: Slot) -> None:
        """Returns a slot whose copies have all finished."""
        self._free.append(slot)


def _roomy(n: int) -> int:
    return 1 << (n - 1).bit_length()
