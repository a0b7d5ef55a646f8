"""The search of vector sets: the query to each shard, and the nearest of what all shards found."""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from gateway.index.collection import Quantization
from gateway.index.filters import Filter
from gateway.redis.client import QueueTimeoutError
from services.api.vectors import F32


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A document near the query, by its cosine."""

    id: str
    cosine: float


@dataclass(frozen=True, slots=True)
class Found:
    """The nearest documents, best first; how many shards did not answer in time, and how many have lost documents or
    parts of them.

    `overloaded`: some shards were not searched, since too many searches wait for this process's connections.
    """

    neighbours: Sequence[Neighbour]
    missing_shards: int
    incomplete_shards: int
    overloaded: bool = False


def query(
    vector: F32, count: int, filter_: Filter | None, ef: int, filter_ef: int, shards: int
) -> list[str | bytes | int]:
    """The query to each shard: the arguments of VSIM after the key."""
    # Each of n shards has about 1/n of the nearest documents, so that a smaller EF per shard suffices.
    shard_ef = max(count, math.ceil(max(ef, 2 * count) / math.sqrt(shards)))
    arguments: list[str | bytes | int] = ["FP32", vector.astype("<f4").tobytes(), "WITHSCORES", "COUNT", count]
    arguments += ["EF", shard_ef]
    if filter_:
        arguments += ["FILTER", filter_.redis, "FILTER-EF", filter_ef]
    return arguments


def merged(count: int, searched: Sequence[Any], counted: Sequence[Any], quantization: Quantization) -> Found:
    """The `count` nearest of what all shards found. `searched`: replies of VSIM; `counted`: replies of lua.CENSUS."""
    failures = [reply for reply in searched if isinstance(reply, Exception)]
    good = chain.from_iterable(
        _neighbours(reply, quantization) for reply in searched if not isinstance(reply, Exception)
    )
    nearest = heapq.nsmallest(count, good, key=lambda found: (-found.cosine, found.id))
    incomplete = sum(not _is_whole(census) for census in counted if not isinstance(census, Exception))
    overloaded = any(isinstance(error, QueueTimeoutError) for error in failures)
    return Found(nearest, len(failures), incomplete, overloaded)


def _neighbours(flat: Sequence[bytes], quantization: Quantization) -> Iterator[Neighbour]:
    """The documents that a shard found."""
    for id_, score in zip(flat[::2], flat[1::2], strict=True):
        yield Neighbour(id_.decode(), _cosine(quantization, float(score)))


def _cosine(quantization: Quantization, score: float) -> float:
    """The cosine of a score of Redis, which is (1 + similarity) / 2.

    The similarity of BINARY vectors is 1 - 2 h, h being the share of dimensions whose signs differ. Two vectors at an
    angle a differ in the sign of a random projection with probability a / pi (Goemans and Williamson 1995; Charikar
    2002), so that cos(pi h) = sin(pi / 2 * similarity) estimates their cosine.
    """
    similarity = min(1.0, max(-1.0, 2 * score - 1))
    return math.sin(math.pi / 2 * similarity) if quantization is Quantization.BINARY else similarity


def _is_whole(census: Sequence[int]) -> bool:
    """Whether a shard has lost nothing, by the answer of lua.CENSUS."""
    return 0 <= min(census) == max(census)
