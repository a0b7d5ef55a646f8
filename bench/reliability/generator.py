"""The load generator's process, as the rows use it."""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from bench.machine import ROOT
from bench.reliability.load import Plan
from bench.reliability.outcomes import Outcome
from deploy.local.process import StartError, python_module

_LEAD_S = 0.1  # between the order to begin and the first moment of the load


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a plan's calls, in the order of their intended arrivals.

    `idle`: latencies before the load. `back`: seconds from its end until they were back; None if they never were.
    """

    outcomes: list[Outcome]
    checked: int
    wrong: int
    idle: list[float]
    back: float | None


class Load:
    """One plan in a process of its own: it connects at once and calls from `begin` on. Raises StartError."""

    def __init__(self, plan: Plan) -> None:
        self._process = subprocess.Popen(
            python_module("bench.reliability.load"), cwd=ROOT, env={**os.environ, "GRPC_VERBOSITY": "NONE"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.began = 0.0
        self._send(plan.as_json())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self) -> None:
        """Waits until it is connected, then starts the load."""
        self._line()
        self.began = time.monotonic() + _LEAD_S
        self._send(repr(self.began))

    def at(self, second: float) -> None:
        """Waits for a moment of the load."""
        time.sleep(max(0.0, self.began + second - time.monotonic()))

    def elapsed(self) -> float:
        """The present moment of the load, in seconds."""
        return time.monotonic() - self.began

    def end(self) -> None:
        """No more calls; those that were sent are waited for. Only of a plan that is to be told."""
        self._send("end")

    def result(self) -> Result:
        """Waits for the end."""
        found: dict[str, Any] = json.loads(self._line())
        self._process.wait()
        outcomes = [Outcome(*values) for values in found.pop("outcomes")]
        return Result(outcomes, **found)

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StartError(f"the load generator ended with status {self._process.wait()}")
        return line


def run(plan: Plan) -> Result:
    """The whole plan, from now on."""
    with Load(plan) as load:
        load.begin()
        return load.result()
