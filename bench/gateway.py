"""Compares cached results through the gateway with a bare grpc.aio server that returns the same bytes."""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import grpc
import numpy as np

from bench import report, services
from bench.echo import METHOD
from bench.report import WINNOW, Report, Row, table_of
from bench.texts import Writer
from deploy.local.process import Process, StartError, python_module
from deploy.local.stack import ROOT
from winnow.embed.v1 import embed_pb2

_EMBED = "/winnow.embed.v1.EmbedService/Embed"
_CALL_SECONDS = 120.0
_WARM_UP_CALLS = 20
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]
Method = Callable[..., Awaitable[bytes]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench gateway`."""
    parser.add_argument("--texts", type=int, default=100, help="texts per request (default 100)")
    parser.add_argument("--concurrency", type=int, default=8, help="calls in flight (default 8)")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each timed round (default 3)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5; publish no fewer)")
    parser.add_argument("--redis-only", action="store_true", help="disable the gateway's local cache (private stack)")
    services.add_arguments(parser)
    report.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Starts the stack and the echo server, measures both in turn and prints the table."""
    output = Report(arguments, "gateway")
    settings = {"GATEWAY_CACHE_LOCAL_BYTES": "0"} if arguments.redis_only else {}
    try:
        with services.gateway(arguments, output, settings) as address:
            rows = asyncio.run(_measure(arguments, address, output))
    except StartError as error:
        print(f"bench gateway: {error}", file=sys.stderr)
        return 1
    for row in rows:
        output.add(row.as_dict())
    output.finish(
        table_of(rows, f"gateway: Embed of {arguments.texts} cached texts, {arguments.concurrency} in flight")
    )
    return 0


async def _measure(arguments: argparse.Namespace, address: str, output: Report) -> list[Row]:
    writer = Writer(seed=4)
    texts = [
        writer.of_words(int(length)) for length in writer.lognormal(arguments.texts, 54, sigma=0.42, low=10, high=200)
    ]
    request = embed_pb2.EmbedRequest(texts=texts).SerializeToString()
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        embed = _method(channel, _EMBED)
        answer = await _cached_answer(embed, request)
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "answer").write_bytes(answer)
            command = [*python_module("bench.echo"), str(Path(directory) / "answer")]
            server = Process("echo", command, {"PYTHONPATH": str(ROOT)}, Path(directory) / "echo.log")
            try:
                async with grpc.aio.insecure_channel(server.address(), options=_OPTIONS) as other:
                    methods = {WINNOW: embed, "echo": _method(other, METHOD)}
                    return await _rounds(arguments, methods, request, output)
            finally:
                server.stop()


async def _rounds(
    arguments: argparse.Namespace,
    methods: dict[str, Method],
    request: bytes,
    output: Report,
) -> list[Row]:
    rates: dict[str, list[float]] = {name: [] for name in methods}
    times: dict[str, list[list[float]]] = {name: [] for name in methods}
    names = list(methods)
    for method in methods.values():  # warm both ends up
        await _load(method, request, arguments.concurrency, 0.5)
    with output.progress() as progress:
        task = progress.add_task("gateway", total=arguments.repeats * len(names))
        for turn in range(arguments.repeats):
            for name in names if turn % 2 == 0 else reversed(names):
                rate, seconds = await _load(methods[name], request, arguments.concurrency, arguments.seconds)
                rates[name].append(rate)
                times[name].append(seconds)
                progress.advance(task)
    case, batch = f"{'redis' if arguments.redis_only else 'cached'}-{arguments.texts}", arguments.texts
    rows = [
        Row("gateway", case, name, batch, median(found), "requests/s", (min(found), max(found)))
        for name, found in rates.items()
    ]
    for percent in (50, 99):
        for name in names:
            found = [1000 * float(np.percentile(seconds, percent)) for seconds in times[name]]
            rows.append(Row("gateway", case, name, batch, median(found), f"ms p{percent}", (min(found), max(found))))
    return rows


async def _load(method: Method, request: bytes, concurrency: int, seconds: float) -> tuple[float, list[float]]:
    """Calls per second, and seconds of each call. The client does not build or parse messages, to be equally fast."""
    taken: list[float] = []
    start = time.perf_counter()

    async def caller() -> None:
        while (begun := time.perf_counter()) - start < seconds:
            await method(request, timeout=_CALL_SECONDS)
            taken.append(time.perf_counter() - begun)

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return len(taken) / (time.perf_counter() - start), taken


def _method(channel: grpc.aio.Channel, name: str) -> Method:
    method: Method = channel.unary_unary(name, request_serializer=None, response_deserializer=None)
    return method


async def _cached_answer(embed: Method, request: bytes) -> bytes:
    """The gateway's response after all texts are cached. Writing to Redis happens in the background."""
    missed = 0
    for _ in range(_WARM_UP_CALLS):
        answer = await embed(request, timeout=_CALL_SECONDS)
        results = embed_pb2.EmbedResponse.FromString(answer).results
        missed = sum(not result.cache_hit for result in results)
        if not missed:
            return answer
    raise StartError(f"{missed} texts are still not cached after {_WARM_UP_CALLS} calls")
