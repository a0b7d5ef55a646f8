"""The application of a worker: one engine behind one servicer."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, NoReturn, Protocol, TypeVar

import grpc

from services.engine import openmp
from services.engine.errors import ModelBroken
from services.engine.types import BatchReport, ModelInfo, QueueStats
from services.runtime import process
from services.runtime.lifecycle import Lifecycle
from services.runtime.settings import Settings
from services.runtime.telemetry.setup import Telemetry
from services.worker.telemetry import WorkerMetrics

log = logging.getLogger("winnow.worker")


class Engine(Protocol):
    """The part of an engine that the application uses."""

    on_batch: Callable[[BatchReport], None] | None
    on_broken: Callable[[ModelBroken], None] | None

    @property
    def info(self) -> ModelInfo:
        """The model."""

    def start(self) -> None:
        """Starts to accept requests."""

    def stats(self) -> QueueStats:
        """Statistics of the queue."""

    async def drain(self) -> None:
        """Finishes the admitted requests."""

    def close(self) -> None:
        """Releases all resources."""


E = TypeVar("E", bound=Engine)


class Worker(Generic[E]):
    """Loads an engine on a thread and serves it.

    `load` blocks (imports, weights, warm-up). `add` registers the servicer, which calls `engine` for each request.
    """

    interceptors = ()

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
        """The engine. Raises RuntimeError before it is loaded; no call arrives before that."""
        if self._engine is None:
            raise RuntimeError("the model has not been loaded")
        return self._engine

    def register(self, server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        """Adds the servicer."""
        self._lifecycle = lifecycle
        self._add(self, server, lifecycle)

    async def start(self) -> None:
        """Loads the model on a thread, so that health checks are answered meanwhile."""
        engine = await self._loaded()
        engine.on_batch = self.metrics.batch
        engine.on_broken = self._broken
        engine.start()
        self._engine = engine
        info = engine.info
        log.info("model %s on %s in %s, fingerprint %s", info.name, info.device, info.dtype, info.fingerprint)

    async def drain(self) -> None:
        """Finishes the requests that the engine has admitted."""
        if self._engine is not None:
            await self._engine.drain()

    async def close(self) -> None:
        """Closes the engine, if it was loaded."""
        if self._engine is not None:
            self._engine.close()

    @property
    def loading(self) -> bool:
        """Whether the loading thread is still running."""
        return self._loader is not None and self._loader.is_alive()

    def _broken(self, error: ModelBroken) -> None:
        log.critical("the model's device failed permanently (%s); the process ends", type(error.cause).__name__)
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
            except RuntimeError:  # the loop is closed: the engine is no longer needed
                return

        # Not an executor's thread: those are joined at exit, but SIGTERM must end the process while it loads.
        self._loader = threading.Thread(target=run, name="load", daemon=True)
        self._loader.start()
        return await future


def run_worker(name: str, kind: type[Settings], make: Callable[[Settings, Telemetry], Worker[E]]) -> NoReturn:
    """Runs a worker until it ends. `name` is its short name ("embed"), `kind` the class of its settings."""
    openmp.configure()
    settings, telemetry = process.begin(name, kind)
    worker = make(settings, telemetry)
    status = process.run(settings, lambda: worker, telemetry)
    if worker.loading:
        # Torch crashes if the interpreter shuts down while a thread is executing torch code.
        logging.shutdown()
        os._exit(status)
    sys.exit(status)
