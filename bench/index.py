"""Measures the index as a collection grows: recall relative to exact search, latency, write time, memory per vector.

It uses the gateway's store with a private Redis 8. The vectors have 256 dimensions and are random, with the structure
of embeddings (a few dozen directions have most of the variance), so that a collection can have any size.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench import report
from bench.report import WINNOW, Report, Row, table_of
from deploy.local.process import Process
from deploy.local.redis import NEEDED, find_redis_server
from gateway.index.catalogue import Catalogue
from gateway.index.collection import Collection, ModelRef, Quantization
from gateway.index.commands import Write
from gateway.index.documents import Digest, Document
from gateway.index.store import Store, StoreSettings
from gateway.redis.client import RedisClient
from gateway.settings import GatewaySettings
from services.api.vectors import F32, narrow

_RANK = 48
_CHUNK = 200
_COUNT = 50
_BUDGET_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench index`."""
    parser.add_argument("--sizes", default="1000,10000,100000", help="collection sizes (default 1000,10000,100000)")
    parser.add_argument("--dimensions", type=int, default=256, help="dimensions of the vectors (default 256)")
    parser.add_argument("--shards", type=int, default=1, help="shards of the collection (default 1)")
    parser.add_argument("--queries", type=int, default=200, help="queries per size (default 200)")
    parser.add_argument(
        "--quantization", default="INT8", choices=[kind.name for kind in Quantization], help="default INT8"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot of time and memory (PNG or SVG)")
    report.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Grows a collection, measures at each size and prints the table."""
    server = find_redis_server()
    if server is None:
        print(f"bench index: Redis {NEEDED} or later is not installed", file=sys.stderr)
        return 1
    output = Report(arguments, "index")
    with tempfile.TemporaryDirectory() as directory:
        socket = Path(directory) / "redis.sock"
        command = [str(server), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", directory]
        process = Process("redis", command, {}, Path(directory) / "redis.log")
        try:
            process.wait_for("eady to accept connections")
            rows = asyncio.run(_measure(arguments, f"unix://{socket}", output))
        finally:
            process.stop()
    for row in rows:
        output.add(row.as_dict())
    output.finish(table_of(rows, f"index: the nearest {_COUNT} of a growing collection, one search at a time"))
    if arguments.plot:
        from bench.growth import plot

        plot(arguments.plot, rows)
    return 0


class _Vectors:
    """Random unit vectors with most of the variance in a few directions."""

    def __init__(self, dimensions: int) -> None:
        self._random = np.random.default_rng(7)
        self._directions = self._random.standard_normal((_RANK, dimensions)) / np.sqrt(_RANK)

    def rows(self, count: int) -> F32:
        """float32 [count, dimensions]."""
        noise = 0.35 * self._random.standard_normal((count, self._directions.shape[1]))
        rows = self._random.standard_normal((count, _RANK)) @ self._directions + noise
        return narrow(rows.astype(np.float32), rows.shape[1])


async def _measure(arguments: argparse.Namespace, url: str, output: Report) -> list[Row]:
    settings = GatewaySettings.model_construct()
    client = RedisClient(url, 60.0)
    store = Store(client, client, StoreSettings(settings.index_ef, settings.index_filter_ef, 0))
    made = await Catalogue(client).create(
        "bench",
        ModelRef("made up", "", "made-up"),
        arguments.dimensions,
        Quantization[arguments.quantization],
        arguments.shards,
    )
    vectors = _Vectors(arguments.dimensions)
    held = np.zeros((0, arguments.dimensions), np.float32)
    rows: list[Row] = []
    empty = await _memory(client)
    for size in sorted(int(size) for size in arguments.sizes.split(",")):
        new = vectors.rows(size - len(held))
        took = await _fill(store, made, new, len(held), output)
        held = np.concatenate([held, new])
        bytes_each = (await _memory(client) - empty) / size
        rows += [
            *await _searches(store, made, held, vectors.rows(arguments.queries)),
            Row("index", f"{size}", WINNOW, 1, median(took), "ms a write", (min(took), max(took))),
            Row("index", f"{size}", WINNOW, 1, bytes_each, "bytes a document", (bytes_each, bytes_each)),
        ]
    await client.close()
    return rows


async def _fill(store: Store, made: Collection, new: F32, first: int, output: Report) -> list[float]:
    """Writes in groups. Returns the milliseconds per document of each group."""
    took: list[float] = []
    with output.progress() as progress:
        task = progress.add_task("documents", total=len(new))
        for start in range(0, len(new), _CHUNK):
            group = [
                Write(document, Digest.of(document), row)
                for place, row in enumerate(new[start : start + _CHUNK])
                for document in [Document(f"d{first + start + place}", "-")]
            ]
            began = time.perf_counter()
            for outcome in await store.write(made, group):
                if isinstance(outcome, Exception):
                    raise outcome
            took.append((time.perf_counter() - began) * 1e3 / len(group))
            progress.advance(task, len(group))
    return took


async def _searches(store: Store, made: Collection, held: F32, queries: F32) -> list[Row]:
    taken: list[float] = []
    recalls: list[float] = []
    for query in queries:
        exact = {f"d{place}" for place in np.argpartition(-(held @ query), _COUNT)[:_COUNT]}
        began = time.perf_counter()
        found = await store.search(made, query, _COUNT, None, "", _BUDGET_S)
        taken.append((time.perf_counter() - began) * 1e3)
        recalls.append(len(exact & {neighbour.id for neighbour in found.neighbours}) / _COUNT)
    case, spread = f"{len(held)}", (min(taken), max(taken))
    recall = float(np.mean(recalls))
    return [
        Row("index", case, WINNOW, 1, recall, f"recall@{_COUNT}", (min(recalls), max(recalls))),
        Row("index", case, WINNOW, 1, float(np.percentile(taken, 50)), "ms p50", spread),
        Row("index", case, WINNOW, 1, float(np.percentile(taken, 99)), "ms p99", spread),
    ]


async def _memory(client: RedisClient) -> float:
    memory: dict[str, Any] = await client.command("INFO", "memory")
    return float(memory["used_memory"])
