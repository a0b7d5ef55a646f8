"""Sizes as Kubernetes and Redis write them."""

from __future__ import annotations

import re


def quantity(text: str | int | float) -> float:
    """A Kubernetes quantity as a number."""
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text))
    assert match, text
    factors = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(match[1]) * factors[match[2]]


def redis_bytes(text: str) -> float:
    """A size as redis.conf writes it."""
    return float(text[:-2]) * {"kb": 2**10, "mb": 2**20, "gb": 2**30}[text[-2:]]
