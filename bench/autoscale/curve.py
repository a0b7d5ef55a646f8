"""The compute time of a replica: a fixed time per batch and a time per token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ServiceCurve:
    """Time of a batch of b tokens: `fixed_s` + b / `tokens_per_second`, for b up to `batch_tokens`."""

    name: str
    fixed_s: float
    tokens_per_second: float
    batch_tokens: int
    load_s: float
    """Time from a pod's creation to its first response, if there is a node: image, weights, warm-up."""
    measured: bool

    def seconds(self, tokens: float) -> float:
        """Time of one batch."""
        return self.fixed_s + tokens / self.tokens_per_second

    def steady_batch(self, rate: float, least: float) -> float:
        """Batch size, in tokens, at `rate` tokens per second: the tokens that arrive during a batch fill the next."""
        idle = 1 - rate / self.tokens_per_second
        return max(least, min(self.batch_tokens, rate * self.fixed_s / idle if idle > 0 else self.batch_tokens))

    @property
    def capacity(self) -> float:
        """Tokens per second in full batches."""
        return self.batch_tokens / self.seconds(self.batch_tokens)


def on_paper(name: str, teraflops: float, parameters: float, layers: int, load_s: float) -> ServiceCurve:
    """The estimated curve of a GPU that has not been measured.

    Args:
        name: Name of the curve.
        teraflops: Dense bf16 rate in the data sheet, of which two fifths are assumed.
        parameters: Parameters of the layers, without embedding and head. A token takes two operations for each.
        layers: Number of layers. The kernel launches of each take about 0.15 ms per batch of any size.
        load_s: See ServiceCurve.
    """
    rate = 0.4 * teraflops * 1e12 / (2 * parameters)
    return ServiceCurve(name, 0.15e-3 * layers, rate, 16384, load_s, measured=False)


def fit(name: str, tokens: Sequence[int], seconds: Sequence[float], load_s: float) -> ServiceCurve:
    """The line through measured batches, weighted so that small and large batches count equally."""
    x, y = np.asarray(tokens, np.float64), np.asarray(seconds, np.float64)
    slope, fixed = np.polyfit(x, y, 1, w=1 / y)
    if slope <= 0:
        raise ValueError(f"{name}: larger batches took no longer; measure again on a quieter machine")
    return ServiceCurve(name, max(float(fixed), 0.0), float(1 / slope), int(x.max()), load_s, measured=True)


def measure(model: str, device: str = "auto", repeats: int = 5) -> ServiceCurve:
    """The measured curve of a model in a folder on this machine, from text to vectors. Takes seconds to minutes."""
    import asyncio

    from services.embed.settings import EmbedSettings
    from services.engine.engine import EmbedEngine

    started = time.perf_counter()
    settings = EmbedSettings(model=model, device=device)
    engine = EmbedEngine.load(settings.engine())
    load_s = time.perf_counter() - started

    async def batches() -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        seconds: list[float] = []

        def seen(report: object) -> None:
            tokens.append(report.tokens)  # type: ignore[attr-defined]
            seconds.append((report.ended_ns - report.started_ns) / 1e9)  # type: ignore[attr-defined]

        engine.on_batch = seen
        engine.start()
        for turn in range(repeats + 1):
            if turn == 1:  # the first turn warms up
                tokens.clear()
                seconds.clear()
            for count in (1, 2, 4, 8, 16, 32, 64):
                await engine.embed([f"text {turn} {i} of {count}, some words long" for i in range(count)])
        await engine.drain()
        engine.close()
        return tokens, seconds

    return fit(model, *asyncio.run(batches()), load_s=load_s)


CURVES = {
    curve.name: curve
    for curve in (
        on_paper("0.6b-l4", 121, 0.44e9, 28, 40),
        on_paper("0.6b-a100", 312, 0.44e9, 28, 40),
        on_paper("0.6b-h100", 989, 0.44e9, 28, 40),
        on_paper("8b-a100", 312, 6.95e9, 36, 120),
        on_paper("8b-h100", 989, 6.95e9, 36, 120),
    )
}
