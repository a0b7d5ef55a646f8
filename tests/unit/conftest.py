"""What unit tests of several packages share."""

from collections.abc import AsyncIterator

import pytest

from tests.support.otlp import Receiver, receiver


@pytest.fixture
async def collected(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    """An OTLP receiver that the environment of this test points at."""
    async with receiver() as to:
        for name, value in to.environment().items():
            monkeypatch.setenv(name, value)
        yield to
