"""Estimates the number of GPUs for a rate of requests."""

from __future__ import annotations

import math

from bench.autoscale.curve import CURVES, ServiceCurve

RATES = (1_000, 10_000, 100_000, 1_000_000)
# Tokens that the model computes for one request: an embedding of a short text; a rerank of 50 passages of 150 tokens,
# with a common prompt of about 90 tokens that is computed once.
EMBED_TOKENS, RERANK_TOKENS = 100, 50 * 150 + 90


def gpus(curve: ServiceCurve, rate: float, tokens: float, utilisation: float) -> int:
    """Number of replicas that the autoscaler reaches at a constant `rate`."""
    return math.ceil(rate * tokens / (utilisation * curve.capacity))


def table(utilisation: float) -> str:
    """The table in Markdown."""
    lines = [
        "| GPU and model | tokens/s | " + " | ".join(f"{rate:,}/s" for rate in RATES) + " |",
        "|---|--:|" + "--:|" * len(RATES),
    ]
    for curve in CURVES.values():
        cells = []
        for rate in RATES:
            embed, rerank = (gpus(curve, rate, tokens, utilisation) for tokens in (EMBED_TOKENS, RERANK_TOKENS))
            cells.append(f"{embed:,} + {rerank:,}")
        lines.append(f"| {curve.name} | {curve.capacity:,.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
