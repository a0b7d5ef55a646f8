"""Simulates a pool of replicas over a day, in steps of a tenth of a second.

Each replica has an equal share of the queue, because the gateway distributes calls. An idle replica starts a batch of
all queued work, so under constant load batches grow until they keep up, as with the engine's scheduler, which has no
timers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.autoscale.curve import ServiceCurve
from bench.autoscale.policy import SYNC_S, Autoscaler, Policy
from bench.autoscale.traffic import Traffic

STEP_S = 0.1
_SAMPLES = 6  # a scrape every 5 s, averaged over 30 s
_SCRAPE_S = 5.0
_STOP_S = 15.0  # preStop and drain: the GPU is held as long
_DEADLINE_S = 2.0  # of an interactive request
_QUEUE_BATCHES = 64  # admitted per replica


@dataclass(frozen=True, slots=True)
class State:
    """Values for metrics, per replica: the mean over the pool."""

    queue_s: float
    batch_tokens: float
    tokens_per_second: float
    requests_per_second: float


def _queue(_: ServiceCurve, state: State) -> float:
    """`winnow_queue_seconds`."""
    return state.queue_s


def _utilisation(curve: ServiceCurve, state: State) -> float:
    """Computed tokens per second / `winnow_tokens_per_second`, the speed in full batches."""
    return state.tokens_per_second / curve.capacity


def _gpu(curve: ServiceCurve, state: State) -> float:
    """Share of time with a running kernel, as in NVIDIA's tools. Small batches keep a GPU as busy as large ones."""
    batch = max(state.batch_tokens, state.tokens_per_second / max(state.requests_per_second, 1e-9))
    return min(1.0, state.tokens_per_second * curve.seconds(batch) / batch)


def _cpu(_: ServiceCurve, state: State) -> float:
    """Used CPU / requested CPU (4). A core tokenizes 0.6 million tokens per second; gRPC takes 0.3 ms per request."""
    return (0.05 + state.tokens_per_second / 0.6e6 + 0.3e-3 * state.requests_per_second) / 4


METRICS: dict[str, Callable[[ServiceCurve, State], float]] = {
    "queue": _queue,
    "utilisation": _utilisation,
    "gpu": _gpu,
    "cpu": _cpu,
}


@dataclass(frozen=True, slots=True)
class Day:
    """The result of a simulation."""

    name: str
    p50_s: float
    p99_s: float
    shed: float
    """Share of the interactive requests that were refused."""
    gpu_hours: float
    most: int
    bulk_hours: float
    """Duration of the bulk job; inf if it did not end on that day."""
    replicas: np.ndarray[tuple[int], np.dtype[np.float64]]
    """For each second."""
    latency_s: np.ndarray[tuple[int], np.dtype[np.float64]]
    """Maximum of each second."""


def simulate(curve: ServiceCurve, traffic: Traffic, policy: Policy, start: int = 4, seed: int = 1) -> Day:
    """Simulates one day. The metrics of the policy are those in METRICS."""
    random = np.random.default_rng(seed)
    seconds = len(traffic.rate)
    steps = int(seconds / STEP_S)
    per_second = round(1 / STEP_S)
    arrivals = random.poisson(np.repeat(traffic.rate, per_second) * STEP_S)
    autoscaler = Autoscaler(policy)
    ready, loading, stopping = max(start, policy.least), deque[float](), deque[float]()
    queue = shed = held = 0.0
    bulk_left, bulk_end = traffic.bulk_tokens, float("inf")
    samples: dict[str, deque[float]] = {name: deque(maxlen=_SAMPLES) for name in policy.targets}
    replicas, worst = np.zeros(seconds), np.zeros(seconds)
    latencies, weights = np.zeros(steps), np.zeros(steps)
    most = ready
    for step in range(steps):
        now = step * STEP_S
        while loading and loading[0] <= now:
            loading.popleft()
            ready += 1
        while stopping and stopping[0] <= now:
            stopping.popleft()
        count, tokens = arrivals[step], arrivals[step] * traffic.request_tokens
        bulk = min(traffic.bulk_window, bulk_left) if now >= traffic.bulk_start_s else 0.0

        # New work waits for the queued work of its priority and for the running batch.
        share = queue / ready
        batch = max(curve.steady_batch(tokens / STEP_S / ready, traffic.request_tokens), share + bulk / ready)
        batch = min(curve.batch_tokens, batch)
        batch_s = curve.seconds(batch)
        wait = share / (batch / batch_s) + 0.5 * batch_s
        if wait + batch_s > _DEADLINE_S or share > _QUEUE_BATCHES * curve.batch_tokens:
            shed += count
            tokens = count = 0
        latencies[step], weights[step] = wait + batch_s, count

        work = ready * STEP_S * batch / batch_s
        queue += tokens
        served = min(queue, work)
        queue -= served
        bulk_served = min(bulk, work - served)
        bulk_left -= bulk_served
        if bulk_left <= 0 and bulk_end == float("inf"):
            bulk_end = now

        if step % round(_SCRAPE_S / STEP_S) == 0:
            # Running work is counted as queued. A batch is in progress for the share of time that the model is busy.
            speed = (served + bulk_served) / STEP_S / ready
            busy = min(1.0, speed * curve.seconds(batch) / batch)
            state = State(
                ((queue + bulk) / ready + busy * batch) / curve.tokens_per_second,
                batch, speed, arrivals[step] / STEP_S / ready,
            )  # fmt: skip
            for name, recent in samples.items():
                recent.append(METRICS[name](curve, state) * ready)
        if step % round(SYNC_S / STEP_S) == 0:
            present = ready + len(loading)
            totals = {name: sum(recent) / len(recent) for name, recent in samples.items()}
            wanted = autoscaler.decide(now, present, totals)
            for _ in range(wanted - present):
                loading.append(now + curve.load_s)
            for _ in range(present - wanted):
                if loading:
                    loading.pop()  # the youngest goes first, and was of no use yet
                else:
                    ready -= 1
                    stopping.append(now + _STOP_S)
        held += (ready + len(loading) + len(stopping)) * STEP_S
        most = max(most, ready + len(loading))
        second = step // per_second
        replicas[second] = ready
        worst[second] = max(worst[second], latencies[step])
    p50, p99 = _percentiles(latencies, weights, (0.5, 0.99))
    return Day(
        policy.name, p50, p99, float(shed) / max(1.0, float(arrivals.sum())), held / 3600, most,
        (bulk_end - traffic.bulk_start_s) / 3600, replicas, worst,
    )  # fmt: skip


def _percentiles(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
    weights: np.ndarray[tuple[int], np.dtype[np.float64]],
    wanted: tuple[float, ...],
) -> list[float]:
    order = np.argsort(values)
    cumulated = np.cumsum(weights[order])
    return [float(values[order][np.searchsorted(cumulated, share * cumulated[-1])]) for share in wanted]
