"""A worker: one engine behind one servicer, as an application for `services.runtime.server`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, NoReturn, Protocol, TypeVar

import grpc

from services.engine.errors import ModelBroken
from services.engine.types import BatchReport, ModelInfo, QueueStats
from services.runtime import process
from services.runtime.lifecycle import Lifecycle
from services.runtime.settings import Settings
from services.runtime.telemetry.setup import Telemetry
from services.worker.telemetry import WorkerMetrics

log = logging.getLogger("winnow.worker")


class Engine(Protocol):
    """What the application needs of either engine."""

    on_batch: Callable[[BatchReport], None] | None
    on_broken: Callable[[ModelBroken], None] | None

    @property
    def info(self) -> ModelInfo:
        """The model."""

    def start(self) -> None:
        """Begins to take requests."""

    def stats(self) -> QueueStats:
        """The queue."""

    async def drain(self) -> None:
        """Finishes what was admitted."""

    def close(self) -> None:
        """Frees everything."""


E = TypeVar("E", bound=Engine)


class Worker(Generic[E]):
    """Loads an engine beside the event loop and serves it.

    `load` blocks (imports, weights, warm-up); `add` registers the servicer, which asks `engine` for it on each call.
    """

    def __init__(
        self,
        service: str,
        load: Callable[[], E],
        add: Callable[[Worker[E], grpc.aio.Server, Lifecycle], None],
        telemetry: Telemetry,
    ) -> None:
        self.services = (service,)
        self._load, self._add = load, add
        self._loader: threading.Thread | None = None
        self._engine: E | None = None
        self._lifecycle: Lifecycle | None = None
        self.metrics = WorkerMetrics(telemetry, lambda: self._engine.stats() if self._engine else None)

    def engine(self) -> E:
        """The engine. RuntimeError before it is loaded; no call arrives before then."""
        if self._engine is None:
            raise RuntimeError("the model has not been loaded")
        return self._engine

    def register(self, server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        """Adds the servicer."""
        self._lifecycle = lifecycle
        self._add(self, server, lifecycle)

    async def start(self) -> None:
        """Loads the model on a thread, so that health answers meanwhile."""
        engine = await self._loaded()
        engine.on_batch = self.metrics.batch
        engine.on_broken = self._broken
        engine.start()
        self._engine = engine
        info = engine.info
        log.info("model %s on %s in %s, fingerprint %s", info.name, info.device, info.dtype, info.fingerprint)

    async def drain(self) -> None:
        """Finishes what the engine has admitted."""
        if self._engine is not None:
            await self._engine.drain()

    async def close(self) -> None:
        """Frees the engine, if it was loaded."""
        if self._engine is not None:
            self._engine.close()

    @property
    def loading(self) -> bool:
        """Whether the loading thread still runs."""
        return self._loader is not None and self._loader.is_alive()

    def _broken(self, error: ModelBroken) -> None:
        log.critical("the model's device failed for good (%s); this process ends", type(error.cause).__name__)
        if self._lifecycle is not None:
            self._lifecycle.fail()

    async def _loaded(self) -> E:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[E] = loop.create_future()

        def settle(engine: E | None, error: BaseException | None) -> None:
            if future.done():  # the start was cancelled
                return
            if engine is not None:
                future.set_result(engine)
            elif error is not None:
                future.set_exception(error)

        def run() -> None:
            try:
                engine, error = self._load(), None
            except Exception as failure:
                engine, error = None, failure
            try:
                loop.call_soon_threadsafe(settle, engine, error)
            except RuntimeError:  # the loop is closed: nobody waits for the engine
                return

        # Not an executor's thread: those are joined at exit, and SIGTERM must end the process while it loads.
        self._loader = threading.Thread(target=run, name="load", daemon=True)
        self._loader.start()
        return await future


def run_worker(name: str, kind: type[Settings], make: Callable[[Settings, Telemetry], Worker[E]]) -> NoReturn:
    """Runs a worker's process to its end. `name` is its short name ("embed"), `kind` the class of its settings."""
    settings, telemetry = process.begin(name, kind)
    worker = make(settings, telemetry)
    status = process.run(settings, lambda: worker, telemetry)
    if worker.loading:
        # Torch crashes if the interpreter is shut down while a thread is inside it.
        logging.shutdown()
        os._exit(status)
    sys.exit(status)
