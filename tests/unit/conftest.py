"""What unit tests of several packages share."""

import pytest

from tests.support.otlp import receiver


@pytest.fixture
async def collected(monkeypatch):
    """An OTLP receiver that the environment of this test points at."""
    async with receiver() as to:
        for name, value in to.environment().items():
            monkeypatch.setenv(name, value)
        yield to
