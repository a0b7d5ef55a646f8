"""Our reranker in a process whose environment is set before torch is loaded: nothing here imports it at the top."""

import asyncio
import os
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from services.engine import openmp


class Worker:
    """An engine in a process of its own.

    `policy`: what its environment says of waiting; None: what a worker sets by itself.
    """

    def __init__(self, folder: Path, policy: dict[str, str] | None) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, str(folder), policy), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._connection.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.send(None)
        self._process.join()

    def ask(self, documents: Sequence[str]) -> None:
        """Starts a request."""
        self._connection.send(list(documents))

    def seconds(self) -> float:
        """Waits for its end; how long it took."""
        return float(self._connection.recv())


def _serve(connection: Connection, folder: str, policy: dict[str, str] | None) -> None:
    if policy is None:
        openmp.configure()
    os.environ.update(policy or {})
    # Only now: loading torch is what reads the environment.
    from bench.subjects.winnow import settings
    from services.engine.engine import RerankEngine

    async def serve() -> None:
        engine = RerankEngine.load(settings(Path(folder), "cpu"))
        engine.start()
        connection.send(None)
        while (documents := await asyncio.to_thread(connection.recv)) is not None:
            start = time.perf_counter()
            await engine.rerank("what reads the environment", documents)
            connection.send(time.perf_counter() - start)
        engine.close()

    asyncio.run(serve())
