"""Of every reason that a caller can be given it is decided whether `winnow_shed_total` counts it."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import gateway
import services.api
import services.runtime
import services.worker
from services.runtime.errors import Problem
from services.runtime.telemetry.names import Refusal

ROOT = Path(__file__).resolve().parents[3]
# Of calls that were wrong, or that were tried and failed. A refusal is a call that is not tried.
NOT_REFUSALS = {
    "ALREADY_EXISTS",
    "DEVICE_MEMORY",  # tried: the device had no memory for it, even alone
    "DOCUMENT_LOST",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "INVALID_FIELD",
    "INVALID_REQUEST",  # over HTTP
    "MODEL_NOT_FOUND",  # over HTTP
    "NON_FINITE",
    "NOT_FOUND",
    "UNAUTHENTICATED",
    "UPSTREAM_UNAVAILABLE",  # tried: there was no answer
}
PRECONDITIONS = {"MODEL_MISMATCH", "NO_INDEX", "NO_VECTOR_SETS"}


def kinds(kind: type[Problem]) -> Iterator[type[Problem]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_every_reason_is_a_refusal_or_known_not_to_be_one() -> None:
    for package in (gateway, services.api, services.runtime, services.worker):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    ours = [kind for kind in kinds(Problem) if kind.__module__.startswith(("gateway.", "services."))]
    assert {kind.reason for kind in ours} == set(Refusal.__members__) | NOT_REFUSALS


def test_no_precondition_is_a_refusal() -> None:
    sources = [path.read_text("utf-8") for room in ("gateway", "services") for path in (ROOT / room).rglob("*.py")]
    given = {reason for source in sources for reason in re.findall(r'Precondition\(\s*"(\w+)"', source)}
    assert given == PRECONDITIONS
    assert not given & set(Refusal.__members__)
