"""Page-locked host memory for batches in flight, used again: locking it for every batch would cost more than a copy."""

from dataclasses import dataclass

import torch

_LEAST = 1 << 12


@dataclass(eq=False, slots=True)
class Slot:
    """Page-locked host memory for one batch in flight: integers on their way in, results on their way out."""

    ints: torch.Tensor
    out: torch.Tensor
    pin: bool

    @classmethod
    def of(cls, words: int, values: int, *, pin: bool) -> "Slot":
        """Room for `words` int32 and `values` float32."""
        return cls(
            torch.empty(words, dtype=torch.int32, pin_memory=pin),
            torch.empty(values, dtype=torch.float32, pin_memory=pin),
            pin,
        )

    def room(self, values: int) -> torch.Tensor:
        """fp32 `[values]` for results; the memory is replaced by more if there is too little."""
        if len(self.out) < values:
            self.out = torch.empty(_roomy(values), dtype=torch.float32, pin_memory=self.pin)
        return self.out[:values]


class BufferPool:
    """Reuses slots: page-locking memory for every batch would cost more than the copy.

    `take` and `give` may be called from different threads. A slot too small is replaced by one with room to spare.
    """

    def __init__(self, size: int, *, pin: bool) -> None:
        self._pin = pin
        self._free: list[Slot] = [Slot.of(_LEAST, _LEAST, pin=pin) for _ in range(size)]

    def take(self, words: int) -> Slot:
        """A slot nobody else uses, with at least that much room for integers; a fresh one if all are taken."""
        slot = self._free.pop() if self._free else Slot.of(words, _LEAST, pin=self._pin)
        if len(slot.ints) < words:
            slot = Slot.of(_roomy(words), len(slot.out), pin=self._pin)
        return slot

    def give(self, slot: Slot) -> None:
        """Returns a slot whose copies have all finished."""
        self._free.append(slot)


def _roomy(n: int) -> int:
    return 1 << (n - 1).bit_length()
