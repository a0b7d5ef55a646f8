"""The gateway as a real process: start, settings, signals."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.process import Process, StartError, python_module
from tests.support.serving import PlainSettings, serving
from tests.support.silent import silent_server
from tests.support.waiting import until
from tests.support.workers import EmbedWorker
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    processes: list[Process] = []

    def started(**variables: str) -> Process:
        environment = {
            "PYTHONPATH": str(ROOT),
            "GATEWAY_LISTEN": "127.0.0.1:0",
            "GATEWAY_METRICS_LISTEN": "127.0.0.1:0",
            "GATEWAY_EMBED_TARGET": "127.0.0.1:1",
            "GATEWAY_RERANK_TARGET": "127.0.0.1:1",
            **variables,
        }
        process = Process("gateway", python_module("gateway"), environment, tmp_path / f"{len(processes)}.log")
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.stop()


async def test_it_serves_without_workers_and_redis_and_ends_in_order(start: Callable[..., Any]) -> None:
    process = start(GATEWAY_REDIS_URL="redis://user:secret@127.0.0.1:1")
    address = await asyncio.to_thread(process.address)
    await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
    async with grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "liveness", "winnow.embed.v1.EmbedService", "winnow.rerank.v1.RerankService",
                        "winnow.retrieval.v1.RetrievalService"):  # fmt: skip
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert "secret" not in process.tail()
    os.kill(process.pid, signal.SIGTERM)
    assert await asyncio.to_thread(process.join) == 0


async def test_sigterm_loses_no_accepted_call(start: Callable[..., Any]) -> None:
    worker = EmbedWorker()
    worker.gate = asyncio.Event()
    async with serving(worker) as worker_at:
        process = start(GATEWAY_EMBED_TARGET=worker_at.address)
        address = await asyncio.to_thread(process.address)
        await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
        async with grpc.aio.insecure_channel(address) as channel:
            stub = embed_pb2_grpc.EmbedServiceStub(channel)
            calls = [stub.Embed(embed_pb2.EmbedRequest(texts=[f"text {n}"]), timeout=20) for n in range(10)]
            await until(lambda: len(worker.requests) == len(calls))
            os.kill(process.pid, signal.SIGTERM)
            await asyncio.to_thread(process.wait_for, "stopping")
            worker.gate.set()
            for call in calls:
                assert len((await call).results) == 1
        assert await asyncio.to_thread(process.join) == 0


async def test_a_token_from_a_file_that_ends_in_a_line_feed(start: Callable[..., Any], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("gateway secret\n")
    async with serving(EmbedWorker(), PlainSettings(auth_tokens_file=tokens)) as worker_at:
        process = start(GATEWAY_EMBED_TARGET=f" {worker_at.address}\n", GATEWAY_WORKERS_TOKEN="secret\n")
        async with grpc.aio.insecure_channel(await asyncio.to_thread(process.address)) as channel:
            await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
            stub = embed_pb2_grpc.EmbedServiceStub(channel)
            answer = await stub.Embed(embed_pb2.EmbedRequest(texts=["a"]), timeout=30)
        assert answer.results[0].embedding.dimensions == 96


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GATEWAY_REDIS_ULR", "redis://127.0.0.1", "GATEWAY_REDIS_URL"),
        ("GATEWAY_REDIS_URL", "http://127.0.0.1", "redis://"),
        ("GATEWAY_CACHE_READ_TIMEOUT_MS", "-1", "GATEWAY_CACHE_READ_TIMEOUT_MS"),
        ("GATEWAY_RETRIEVAL_WEIGHT", "2", "GATEWAY_RETRIEVAL_WEIGHT"),
        ("GATEWAY_LISTEN", "nonsense", "HOST:PORT"),
        ("GATEWAY_WORKERS_TOKEN", "half\nhalf", "control character"),
        ("GATEWAY_WORKERS_TOKEN", "ключ", "visible ASCII"),
        ("GATEWAY_EMBED_TARGET", "a host:50051", "visible ASCII"),
        ("GATEWAY_RERANK_TARGET", "https://host:50052", "gRPC target"),
    ],
)
def test_a_wrong_setting_stops_the_start_in_one_line(
    start: Callable[..., Any], name: str, value: str, said: str
) -> None:
    process = start(**{name: value})
    with pytest.raises(StartError, match="status 2"):
        process.address()
    assert said in process.tail()
    assert name in process.tail()
    assert "Traceback" not in process.tail()


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), (b"", "no certificate in PEM")])
def test_a_ca_that_is_none_stops_the_start_in_one_line(
    start: Callable[..., Any], tmp_path: Path, content: bytes | None, said: str
) -> None:
    authority = tmp_path / "ca.crt"
    if content is not None:
        authority.write_bytes(content)
    process = start(GATEWAY_WORKERS_TLS="true", GATEWAY_WORKERS_TLS_CA=str(authority))
    with pytest.raises(StartError, match="status 1"):
        process.address()
    assert said in process.tail()
    assert str(authority) in process.tail()
    assert "Traceback" not in process.tail()


def test_blank_settings_are_absent_ones(start: Callable[..., Any]) -> None:
    process = start(GATEWAY_REDIS_URL="", GATEWAY_RETRIEVAL_WEIGHT="", GATEWAY_CACHE_URL="")
    process.wait_for("no cache in Redis")
    process.wait_for("no collections")


def test_it_imports_neither_torch_nor_the_engine() -> None:
    program = """
import sys, gateway.__main__
print([name for name in sys.modules if name.split(".")[0] in {"torch", "transformers", "tokenizers"}
       or name.startswith("services.engine")])
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert said.stdout.strip() == "[]"


def test_silent_connections_to_the_metrics_port_cost_no_threads(start: Callable[..., Any]) -> None:
    process = start()
    process.wait_for(r"\bserving winnow\.")
    host, port = process.metrics_address().rsplit(":", 1)

    def threads() -> int:
        return len(os.listdir(f"/proc/{process.pid}/task"))

    before = threads()
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection((host, int(port))))
        for _ in range(3):
            with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
                assert answer.status == 200  # empty, as long as nothing has been measured
        assert threads() < before + 30  # gRPC and asyncio start some of their own
    assert process.stop() == 0


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_it_ends_at_once_where_nothing_was_accepted(start: Callable[..., Any], scheme: str) -> None:
    """Whatever it waits for itself: a Redis or a worker that accepts connections and never answers."""
    async with silent_server() as silent:
        process = start(
            GATEWAY_REDIS_URL=f"{scheme}://{silent}",
            GATEWAY_INDEX_TIMEOUT_MS="60000",
            GATEWAY_EMBED_TARGET=silent,
            GATEWAY_RERANK_TARGET=silent,
        )
        address = await asyncio.to_thread(process.address)
        await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
        async with grpc.aio.insecure_channel(address) as channel:
            search = retrieval_pb2_grpc.RetrievalServiceStub(channel).Search
            request = retrieval_pb2.SearchRequest(query="text", collection={"name": "docs"})
            for call in [search(request, timeout=0.5) for _ in range(10)]:
                with pytest.raises(grpc.aio.AioRpcError):
                    await call
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(process.join) == 0
        assert time.monotonic() - began < 5


async def test_the_log_does_not_quote_a_callers_headers(start: Callable[..., Any]) -> None:
    process = start()
    address = await asyncio.to_thread(process.address)
    await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
    traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
    metadata = (("traceparent", traceparent), ("tracestate", "a=b,SECRET!"), ("baggage", "=SECRET"))
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await embed_pb2_grpc.EmbedServiceStub(channel).Embed(
                embed_pb2.EmbedRequest(), metadata=metadata, timeout=30
            )
    assert process.stop() == 0
    assert "SECRET" not in process.tail()
