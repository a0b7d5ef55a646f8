"""The wait policy of OpenMP's threads, as its own runtime reads it."""

import os
import subprocess
import sys

import pytest

SHOW = """
import sys
import services.{0}.worker, services.worker.application
from services.engine import openmp
assert "torch" not in sys.modules, "too late: torch has read the environment"
openmp.configure()
import torch
"""


def displayed(worker: str = "embed", **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(worker)],
        env=inherited | {"OMP_DISPLAY_ENV": "verbose"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP runtime")
@pytest.mark.parametrize("worker", ["embed", "rerank"])
def test_a_worker_sets_it_before_torch_is_loaded(worker: str) -> None:
    assert "GOMP_SPINCOUNT = '4000'" in displayed(worker)


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP runtime")
def test_what_the_environment_says_is_left_alone() -> None:
    assert "GOMP_SPINCOUNT = '77'" in displayed(GOMP_SPINCOUNT="77")
    passive = displayed(OMP_WAIT_POLICY="passive")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in passive
    assert "GOMP_SPINCOUNT = '4000'" not in passive
