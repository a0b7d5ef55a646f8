"""Tiny checkpoints, engines over them, and a way to call an engine from a synchronous test."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.devices.cpu import Cpu
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.layers.elementwise import Elementwise, InPlace
from services.engine.layers.linear import LinearFormat, fp32
from services.engine.models.base import Head, unit_vectors
from services.engine.models.decoder.forward import Decoder
from services.engine.models.decoder.weights import read
from services.engine.models.qwen3.family import Qwen3Family
from services.engine.types import EngineSettings
from tests.support.checkpoints import save

T = TypeVar("T")
LIMIT = 300  # tokens per text in these tests


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoints(shape, **how)`: the folder of a tiny checkpoint, made once."""
    made: dict[str, Path] = {}

    def get(shape: str = "tied", **how: Any) -> Path:
        key = f"{shape} {sorted(how.items())}"
        if key not in made:
            made[key] = save(tmp_path_factory.mktemp(shape), shape, **how)
        return made[key]

    return get


class Blocking:
    """An engine on an event loop of its own, called from outside."""

    def __init__(self, engine: EmbedEngine | RerankEngine, runner: asyncio.Runner) -> None:
        self.engine, self._runner = engine, runner

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        async def call() -> Any:
            return await getattr(self.engine, method)(*args, **kwargs)

        return self._runner.run(call())


@contextmanager
def blocking(engine: EmbedEngine | RerankEngine) -> Iterator[Blocking]:
    async def start() -> None:
        engine.start()

    with asyncio.Runner() as runner:
        runner.run(start())
        yield Blocking(engine, runner)
        engine.close()


@pytest.fixture(scope="session")
def embed(checkpoints: Callable[..., Path]) -> Iterator[Blocking]:
    settings = EngineSettings(str(checkpoints()), max_tokens=LIMIT, threads=1)
    with blocking(EmbedEngine.load(settings)) as engine:
        yield engine


@pytest.fixture(scope="session")
def rerank(checkpoints: Callable[..., Path]) -> Iterator[Blocking]:
    settings = EngineSettings(str(checkpoints()), max_tokens=LIMIT, threads=1)
    with blocking(RerankEngine.load(settings)) as engine:
        yield engine


def device(
    folder: Path,
    *,
    linear: LinearFormat = fp32,
    mlp: LinearFormat | None = None,
    elementwise: Elementwise | None = None,
    head: Head = unit_vectors,
    mlp_rows: int = 1024,
) -> Cpu:
    """The model of a checkpoint, put together by hand."""
    family = Qwen3Family(Checkpoint.open(str(folder)))
    config = family.config
    ops = elementwise or InPlace(config.rms_norm_eps)
    weights = read(config, family.tensors, torch.device("cpu"), ops.residual, linear, mlp or linear, LIMIT)
    return Cpu(Decoder(config, weights, ops, mlp_rows), head)


def ids(rng: np.random.Generator, length: int, vocabulary: int = 400) -> np.ndarray:
    """Random tokens."""
    return rng.integers(0, vocabulary, length).astype(np.int32)
