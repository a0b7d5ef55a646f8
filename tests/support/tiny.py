"""Workers over tiny random checkpoints: real engine, real servicer, real gRPC, in the test's own process."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.embed.settings import EmbedSettings
from services.embed.worker import embed_worker
from services.rerank.settings import RerankSettings
from services.rerank.worker import rerank_worker
from services.runtime.lifecycle import Lifecycle
from services.runtime.telemetry.setup import Telemetry
from services.worker.application import Worker
from tests.support.checkpoints import save
from tests.support.serving import Served, serving

MAX_TOKENS = 256
"""Of the tiny workers: short, so that tests of truncation are quick."""


@dataclass(frozen=True)
class Tiny:
    """Folders of two checkpoints."""

    embed: Path
    rerank: Path


def saved(root: Path) -> Tiny:
    """An embedding model of width 64, and a reranker."""
    (root / "embed").mkdir()
    (root / "rerank").mkdir()
    return Tiny(save(root / "embed", bare=True), save(root / "rerank"))


@dataclass
class ServedWorker(Served):
    """A running worker, with its engine at hand."""

    worker: Worker[Any]


@asynccontextmanager
async def embedding(tiny: Tiny, telemetry: Telemetry | None = None, **settings: Any) -> AsyncIterator[ServedWorker]:
    """An embed worker that serves."""
    telemetry = telemetry or Telemetry()
    given = {"listen": "127.0.0.1:0", "metrics_listen": None, "max_tokens": MAX_TOKENS, "threads": 1, **settings}
    chosen = EmbedSettings(model=str(tiny.embed), **given)

    worker = embed_worker(chosen, telemetry)
    async with serving(worker, chosen, telemetry) as served:
        yield ServedWorker(**vars(served), worker=worker)


@asynccontextmanager
async def reranking(tiny: Tiny, telemetry: Telemetry | None = None, **settings: Any) -> AsyncIterator[ServedWorker]:
    """A rerank worker that serves."""
    telemetry = telemetry or Telemetry()
    given = {"listen": "127.0.0.1:0", "metrics_listen": None, "max_tokens": MAX_TOKENS, "threads": 1, **settings}
    chosen = RerankSettings(model=str(tiny.rerank), **given)
    worker = rerank_worker(chosen, telemetry)
    async with serving(worker, chosen, telemetry) as served:
        yield ServedWorker(**vars(served), worker=worker)


@contextmanager
def held(worker: Worker[Any]) -> Iterator[threading.Event]:
    """Keeps the model's thread busy until the block ends or the event is set: what is asked meanwhile waits."""
    release = threading.Event()
    worker.engine()._runner._launcher.submit(release.wait)
    try:
        yield release
    finally:
        release.set()


def slowed(worker: Worker[Any], tokens_per_second: float) -> None:
    """Lets the engine estimate its work as if this were its speed, whatever the size of a batch."""
    throughput = worker.engine()._throughput
    throughput._fixed_s, throughput._token_s = 0.0, 1 / tokens_per_second


async def until_idle(worker: Worker[Any]) -> None:
    """Returns when no token waits."""
    while worker.engine().stats().queued_tokens:  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(0)


async def until_calls(lifecycle: Lifecycle, calls: int) -> None:
    """Returns when so many calls are in progress. A call of short texts is queued in the step in which it is let in."""
    while lifecycle.calls < calls:  # noqa: ASYNC110 - only for tests
        await asyncio.sleep(0)


async def until_queued(worker: Worker[Any], tokens: int = 1) -> None:
    """Returns when so many tokens wait or run."""
    while (stats := worker.engine().stats()).queued_tokens + stats.inflight_tokens < tokens:  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(0)
