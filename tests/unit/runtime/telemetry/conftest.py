"""A process's telemetry, sent to a real OTLP receiver."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.runtime.telemetry.setup import Telemetry
from tests.support.otlp import Receiver


@pytest.fixture
async def telemetry(collected: Receiver) -> AsyncIterator[Telemetry]:
    made = Telemetry.start("winnow-test", "127.0.0.1:0")
    yield made
    await asyncio.to_thread(made.shutdown)  # it sends to a receiver on this very loop
