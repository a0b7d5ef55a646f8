"""The one place where the event loop meets the model: a batch goes to the model's own thread and comes back."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from services.engine.devices.base import Device, Finish
from services.engine.errors import EngineError, ModelBroken, NonFinite, OutOfMemory
from services.engine.jobs import Batch
from services.engine.packing.packing import Packed
from services.engine.types import BatchReport, Ids, Vector

Launched = list[tuple[list[Ids], Packed, Finish] | tuple[list[Ids], None, None]]
"""Parts of a batch in order: sequences, layout and the way to their rows; None if memory ran out."""


class Runner:
    """Runs batches on a device and keeps each text's failure to itself.

    `launcher`: the model's thread, on which the device was built; ours from now on. `on_batch` is called on the event
    loop after every batch.
    """

    def __init__(
        self, device: Device, launcher: ThreadPoolExecutor, on_batch: Callable[[BatchReport], None] | None = None
    ) -> None:
        self._device, self._launcher, self.on_batch = device, launcher, on_batch
        # If the device works on its own, another thread waits for it while this one launches the next batch.
        self._waiter = ThreadPoolExecutor(1, "results") if device.overlaps else None

    async def __call__(self, batch: Batch[Ids, Vector]) -> Sequence[Vector | EngineError]:
        """A float32 row `[width]`, NonFinite or OutOfMemory for each text. Raises ModelBroken."""
        loop = asyncio.get_running_loop()
        started = time.time_ns()
        sequences = batch.payloads
        if self._waiter:
            launched = await loop.run_in_executor(self._launcher, self._launch, sequences)
            rows = await loop.run_in_executor(self._waiter, collect, launched)
        else:
            launched, rows = await loop.run_in_executor(self._launcher, self._launch_and_collect, sequences)
        if self.on_batch:
            self.on_batch(
                BatchReport(
                    started_ns=started,
                    ended_ns=time.time_ns(),
                    tokens=sum(packed.tokens for _, packed, _ in launched if packed),
                    requested_tokens=sum(map(len, sequences)),
                    segments=len(sequences),
                    priority=batch.priority,
                    requests=batch.contexts,
                )
            )
        return rows

    def run(self, sequences: list[Ids]) -> list[Vector | EngineError]:
        """One batch, blocking, on the model's thread."""
        return self._launcher.submit(self._launch_and_collect, sequences).result()[1]

    def optimize(self) -> None:
        """Lets the device prepare faster ways in the background."""

        def on_model_thread(job: Callable[[], None]) -> None:
            try:
                done = self._launcher.submit(job)
            except RuntimeError:  # closed meanwhile
                return
            done.result()

        threading.Thread(target=self._device.optimize, args=[on_model_thread], name="optimize", daemon=True).start()

    def close(self) -> None:
        """Ends the threads once they have finished what they are doing."""
        self._launcher.shutdown(wait=True)
        if self._waiter:
            self._waiter.shutdown(wait=True)

    def _launch_and_collect(self, sequences: list[Ids]) -> tuple[Launched, list[Vector | EngineError]]:
        launched = self._launch(sequences)
        return launched, collect(launched)

    def _launch(self, sequences: list[Ids], *, again: bool = True) -> Launched:
        """Launches all at once; if that takes too much memory, in two halves (or the one text again)."""
        try:
            packed = self._device.pack(sequences)
            return [(sequences, packed, self._device.launch(packed))]
        except Exception as error:
            if not is_out_of_memory(error):
                raise broken(error) from error
        if not again:
            return [(sequences, None, None)]
        half = (len(sequences) + 1) // 2
        parts = [part for part in (sequences[:half], sequences[half:]) if part]
        return [launched for part in parts for launched in self._launch(part, again=False)]


def collect(launched: Launched) -> list[Vector | EngineError]:
    """Waits for the rows of a launched batch."""
    rows: list[Vector | EngineError] = []
    for sequences, _, finish in launched:
        if finish is None:
            rows += [OutOfMemory() for _ in sequences]
            continue
        try:
            output = finish()
        except Exception as error:
            raise broken(error) from error
        rows += [row if np.isfinite(row).all() else NonFinite() for row in output]
    return rows


def is_out_of_memory(error: Exception) -> bool:
    """On CUDA a type of its own; on the CPU a RuntimeError that only its text tells apart."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def broken(error: Exception) -> Exception:
    """ModelBroken for CUDA errors, after which no call on the device succeeds; any other error as it is."""
    sticky = isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
    return ModelBroken(error) if sticky else error
