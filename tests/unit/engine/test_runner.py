"""What goes wrong in a batch stays with the texts it concerns."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from services.engine.devices.base import Finish
from services.engine.errors import ModelBroken, NonFinite, OutOfMemory
from services.engine.jobs import Batch, Job
from services.engine.packing.packing import Packed, pack
from services.engine.runner import Runner
from services.engine.types import BatchReport, Priority

OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Scripted:
    """A device that gives each text its own first token, and fails as told."""

    def __init__(self, *, overlaps: bool = False, capacity: int = 10**9, error: Exception = OOM) -> None:
        self.overlaps, self.capacity, self.error = overlaps, capacity, error
        self.launched: list[int] = []
        self.threads: set[str] = set()
        self.finish_error: Exception | None = None

    def pack(self, sequences: list[np.ndarray]) -> Packed:
        return pack(sequences)

    def launch(self, packed: Packed) -> Finish:
        self.launched.append(len(packed.outputs))
        self.threads.add(threading.current_thread().name)
        if packed.tokens > self.capacity:
            raise self.error
        rows = packed.ids[packed.cu_q[:-1]].astype(np.float32)[packed.outputs, None]
        rows[rows == 13] = np.nan
        rows[rows == 14] = np.inf

        def finish() -> np.ndarray:
            self.threads.add(threading.current_thread().name)
            if self.finish_error:
                raise self.finish_error
            return rows

        return finish

    def optimize(self, on_model_thread: Callable[[Callable[[], None]], None]) -> None:
        """Nothing."""


def texts(*firsts: int, length: int = 5) -> list[np.ndarray]:
    return [np.full(length, first, np.int32) for first in firsts]


def runner(device: Scripted, on_batch: Callable[[BatchReport], None] | None = None) -> Runner:
    return Runner(device, ThreadPoolExecutor(1, "model"), on_batch)


async def run(runner: Runner, sequences: list[np.ndarray]) -> list[object]:
    job: Job[np.ndarray, np.ndarray] = Job(
        payloads=sequences,
        costs=[len(s) for s in sequences],
        shared=0,
        priority=Priority.BULK,
        caller="",
        deadline=None,
        context="who asked",
        future=asyncio.get_running_loop().create_future(),
        admitted=0.0,
        remaining=0,
    )
    batch: Batch[np.ndarray, np.ndarray] = Batch(Priority.BULK)
    batch.fill(job, 10**9)
    try:
        return [row if isinstance(row, Exception) else float(row[0]) for row in await runner(batch)]
    finally:
        runner.close()


def kinds(rows: list[object]) -> list[object]:
    return [type(row) if isinstance(row, Exception) else row for row in rows]


@pytest.mark.parametrize("overlaps", [False, True])
async def test_rows_and_a_report(overlaps: bool) -> None:
    reports: list[BatchReport] = []
    device = Scripted(overlaps=overlaps)
    assert await run(runner(device, reports.append), texts(3, 1, 3)) == [3, 1, 3]
    (report,) = reports
    assert (report.tokens, report.requested_tokens, report.segments, report.priority) == (10, 15, 3, Priority.BULK)
    assert report.requests == ("who asked",)
    assert report.started_ns <= report.ended_ns
    assert {name.split("_")[0] for name in device.threads} == ({"model", "results"} if overlaps else {"model"})


async def test_not_a_number_fails_its_own_text_only() -> None:
    assert kinds(await run(runner(Scripted()), texts(1, 13, 2, 14))) == [1, NonFinite, 2, NonFinite]


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("error", [OOM, RuntimeError("DefaultCPUAllocator: can't allocate memory: not enough memory")])
async def test_a_batch_too_large_is_halved_once(overlaps: bool, error: Exception) -> None:
    device = Scripted(overlaps=overlaps, capacity=15, error=error)
    assert await run(runner(device), texts(1, 2, 3, 4, 5)) == [1, 2, 3, 4, 5]
    assert device.launched == [5, 3, 2]


async def test_a_half_still_too_large_fails_only_its_own() -> None:
    device = Scripted(capacity=11)
    rows = await run(runner(device), texts(1, 2, 3, 4, 5))
    assert kinds(rows) == [OutOfMemory, OutOfMemory, OutOfMemory, 4, 5]
    assert device.launched == [5, 3, 2]


async def test_one_text_too_large_is_tried_again_and_fails() -> None:
    device = Scripted(capacity=4)
    assert kinds(await run(runner(device), texts(1))) == [OutOfMemory]
    assert device.launched == [1, 1]


@pytest.mark.parametrize("at", ["launch", "finish"])
@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: an illegal memory access"), RuntimeError("CUDA error: unspecified")]
)
async def test_a_sticky_device_error_breaks_the_model(at: str, error: Exception) -> None:
    device = Scripted(capacity=0 if at == "launch" else 10**9, error=error, overlaps=True)
    device.finish_error = error
    with pytest.raises(ModelBroken) as broken:
        await run(runner(device), texts(1, 2))
    assert broken.value.cause is error
    assert "illegal" not in str(broken.value)  # nothing internal in what a caller may see


async def test_a_bug_is_neither() -> None:
    with pytest.raises(ZeroDivisionError):
        await run(runner(Scripted(capacity=0, error=ZeroDivisionError())), texts(1))
