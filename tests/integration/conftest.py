"""What integration tests share."""

from collections.abc import Iterator

import pytest

from tests.support.redis import RedisProcess, redis_server


@pytest.fixture(scope="session")
def _redis() -> Iterator[RedisProcess]:
    with redis_server() as server:
        yield server


@pytest.fixture
def redis8(_redis: RedisProcess) -> RedisProcess:
    """A private Redis 8, empty."""
    with _redis.client() as client:
        client.flushall()
    return _redis
