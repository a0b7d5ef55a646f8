"""`python -m bench.reliability.load`: a load generator, a process of its own so that nothing else delays its calls.

It reads a plan (one line of JSON), connects, says `ready`, reads the moment to begin (on the system's monotonic clock),
calls, and prints what became of the calls. Arrivals are an open loop: a Poisson process that waits for no answer, so
that a slow server meets no fewer calls, and latency counts from the intended arrival.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import grpc
import numpy as np

from bench.reliability.calls import ONCE, RETRIES, Calls, channel
from bench.reliability.outcomes import Outcome, failure

_IDLE_CALLS = 12
_BACK_CALLS = 3  # as fast as when idle, in a row
_BACK_FACTOR, _BACK_S, _GIVE_UP_S = 1.5, 0.02, 20.0
_PROBE_NUMBER = 10_000_000  # the numbers of calls from here on are those of probes


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. One of `steps`, `concurrency` and `at_once` is given.

    `steps`: (seconds, calls per second) one after another. `concurrency`: calls in flight for `seconds` (closed loop).
    `at_once`: so many calls in the first moment. `worker`: target of workers that compute some answers once more.
    `probes`: also measure the idle latency, and how long after the load it is back. `until_told`: the load ends when
    another line is read, or as planned if that is earlier. `tls`: folder of certificates and token.
    """

    target: str
    kind: str = "embed"
    steps: list[tuple[float, float]] = field(default_factory=list)
    concurrency: int = 0
    seconds: float = 0.0
    at_once: int = 0
    timeout: float = 30.0
    channels: int = 4
    retries: bool = False
    seed: int = 1
    words: int = 60
    documents: int = 20
    document_words: int = 15
    token: str = ""
    tls: str = ""
    worker: str = ""
    checks: int = 32
    probes: bool = False
    until_told: bool = False

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def arrivals(steps: Sequence[tuple[float, float]], seed: int) -> list[float]:
    """The moments of a Poisson process whose rate changes from step to step."""
    random, begun = np.random.default_rng(seed), 0.0
    moments: list[float] = []
    for seconds, rate in steps:
        found = begun + np.cumsum(random.exponential(1 / rate, int(seconds * rate * 1.5) + 50))
        moments += [float(moment) for moment in found if moment < begun + seconds]
        begun += seconds
    return moments


class Generator:
    """Runs a plan once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._calls = Calls(plan.kind, plan.seed, plan.words, plan.documents, plan.document_words, plan.token)
        config = RETRIES if plan.retries else ONCE
        self._channels = [channel(plan.target, config, plan.tls) for _ in range(plan.channels)]
        self._outcomes: list[Outcome] = []
        self._answers: dict[int, Any] = {}
        self._begun = 0.0
        self._told: asyncio.Future[str] | None = None
        self._kept = 1  # of so many answers, one is kept to be checked

    async def connect(self) -> list[float]:
        """Connects every channel by a call. Returns the latencies of calls to an idle server, if asked to probe."""
        for number, one in enumerate(self._channels):
            await self._calls.send(one, _PROBE_NUMBER + number, 60.0)
        if not self._plan.probes:
            return []
        return [await self._probe(_PROBE_NUMBER + 1000 + number) for number in range(_IDLE_CALLS)]

    async def run(self, begin: float, idle: Sequence[float]) -> dict[str, Any]:
        """All calls, then the checks."""
        plan, self._begun = self._plan, begin
        moments = [0.0] * plan.at_once or arrivals(plan.steps, plan.seed)
        # A load that is told to end may end long before its last moment.
        self._kept = max(1, len(moments) // ((32 if plan.until_told else 4) * plan.checks))
        back = None
        if plan.concurrency:
            await self._closed()
        else:
            sent = [asyncio.create_task(self._call(number, at)) async for number, at in self._paced(moments)]
            if plan.probes:
                await self._until(sum(seconds for seconds, _ in plan.steps))
                back = await self._back(max(idle))
            await asyncio.gather(*sent)
        checked, wrong = await self._check()
        for one in self._channels:
            await one.close()
        return {
            "outcomes": [outcome.as_list() for outcome in sorted(self._outcomes, key=lambda one: one.at)],
            "checked": checked, "wrong": wrong, "idle": list(idle), "back": back,
        }  # fmt: skip

    async def _paced(self, moments: Sequence[float]) -> AsyncIterator[tuple[int, float]]:
        if self._plan.until_told:
            self._told = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        for number, at in enumerate(moments):
            if self._told and self._told.done():
                return
            await self._until(at)
            yield number, at

    async def _closed(self) -> None:
        numbers = count()

        async def caller() -> None:
            while (now := time.monotonic() - self._begun) < self._plan.seconds:
                await self._call(next(numbers), now)

        await self._until(0.0)
        await asyncio.gather(*(caller() for _ in range(self._plan.concurrency)))

    async def _call(self, number: int, at: float) -> None:
        sent = time.monotonic() - self._begun
        call = self._calls.send(self._channels[number % len(self._channels)], number, self._plan.timeout)
        code, answer = await _code_of(call)
        latency, lag = time.monotonic() - self._begun - at, sent - at
        if isinstance(answer, grpc.aio.AioRpcError):
            self._outcomes.append(Outcome(at, latency, lag, *failure(answer)))
            return
        if answer is None:
            self._outcomes.append(Outcome(at, latency, lag, code))
            return
        code = self._calls.error(answer) or code
        degraded = bool(getattr(answer, "degraded", False))
        if code == "OK" and not degraded and number % self._kept == 0:
            self._answers[number] = answer
        tokens = int(answer.usage.input_tokens) if code == "OK" and self._plan.kind == "embed" else 0
        self._outcomes.append(Outcome(at, latency, lag, code, degraded=degraded, tokens=tokens))

    async def _check(self) -> tuple[int, int]:
        """How many answers were checked, and how many were wrong."""
        numbers = sorted(self._answers)
        chosen = numbers[:: max(1, len(numbers) // max(1, self._plan.checks))][: self._plan.checks]
        worker = channel(self._plan.worker, ONCE, self._plan.tls) if self._plan.worker else None
        right = [await self._calls.right(self._answers[number], number, worker) for number in chosen]
        if worker is not None:
            await worker.close()
        return len(right), right.count(False)

    async def _probe(self, number: int) -> float:
        begun = time.monotonic()
        code, _ = await _code_of(self._calls.send(self._channels[0], number, 10.0))
        return time.monotonic() - begun if code == "OK" else float("inf")

    async def _back(self, idle: float) -> float | None:
        """Seconds from now until calls are as fast as when idle; None if they never are."""
        begun, fast, since = time.monotonic(), 0, 0.0
        for number in count(_PROBE_NUMBER + 2000):
            started = time.monotonic() - begun
            fast = fast + 1 if await self._probe(number) <= _BACK_FACTOR * idle + _BACK_S else 0
            since = started if fast == 1 else since
            if fast == _BACK_CALLS:
                return since
            if started > _GIVE_UP_S:
                break
        return None

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, self._begun + at - time.monotonic()))


async def _code_of(call: Awaitable[Any]) -> tuple[str, Any]:
    """The code, and the answer or the error."""
    try:
        return "OK", await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error
    except asyncio.CancelledError:  # grpc raises it for a call that the server cancelled
        return "CANCELLED", None


async def _main() -> None:
    words = json.loads(sys.stdin.readline())
    generator = Generator(Plan(**words | {"steps": [tuple(step) for step in words["steps"]]}))
    idle = await generator.connect()
    gc.freeze()
    gc.disable()
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    begin = float(await loop.run_in_executor(None, sys.stdin.readline))
    print(json.dumps(await generator.run(begin, idle)), flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
