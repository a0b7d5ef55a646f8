"""What may keep a process from ending, though it has accepted nothing: callers that are connected and silent."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx2 as httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.local.process import Process, python_module
from tests.support.redis import RedisProcess
from tests.support.serving import rich_status, serving
from tests.support.tiny import Tiny
from tests.support.workers import EmbedWorker
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
# Far beyond the test's own time limit: whatever waits for the drain to run out does not end.
DRAIN_SECONDS = "3600"

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes: list[Process] = []

    def started(prefix: str, module: str, **variables: str) -> Process:
        environment = {
            "PYTHONPATH": str(ROOT),
            f"{prefix}_LISTEN": "127.0.0.1:0",
            f"{prefix}_METRICS_LISTEN": "127.0.0.1:0",
            f"{prefix}_DRAIN_SECONDS": DRAIN_SECONDS,
            **{f"{prefix}_{name}": value for name, value in variables.items()},
        }
        process = Process(prefix, python_module(module), environment, tmp_path / f"{prefix}.log")
        processes.append(process)
        return process

    yield started
    for process in processes:
        if process.running:
            os.kill(process.pid, signal.SIGKILL)
        process.join()


async def never() -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield


async def silent_callers(channel: grpc.aio.Channel) -> list[Any]:
    """Streams of every kind that any process serves, each of them open on the server, and silent."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    await reflected.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
    await reflected.read()
    unspoken = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(never())
    embed = embed_pb2_grpc.EmbedServiceStub(channel)
    unsent = embed.EmbedStream()
    options_only = embed.EmbedStream()
    await options_only.write(embed_pb2.EmbedStreamRequest(options=embed_pb2.EmbedOptions()))
    answered = embed.EmbedStream()
    await answered.write(embed_pb2.EmbedStreamRequest(items=[embed_pb2.EmbedStreamItem(id="a", text="text")]))
    await answered.read()
    # A unary call whose one message never comes.
    method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
    method = channel.stream_unary("/winnow.embed.v1.EmbedService/Embed")
    headless = method(never())
    await embed.GetModel(embed_pb2.GetModelRequest())  # on the same connection: what was opened before has arrived
    return [watch, reflected, unspoken, unsent, options_only, answered, headless]


async def ends(process: Process) -> None:
    os.kill(process.pid, signal.SIGTERM)
    assert await asyncio.to_thread(process.join) == 0
    assert "not everything" not in process.tail()


def connections(process: Process) -> list[socket.socket]:
    """Connections to both ports that send nothing, or the half of something, and wait."""
    made = []
    for address, sent in ((process.metrics_address(), b"GET /metrics HT"), (process.address(), b"PRI * HTTP/2.0")):
        host, _, port = address.rpartition(":")
        for data in (b"", sent):
            made.append(socket.create_connection((host, int(port))))
            made[-1].sendall(data)
    return made


async def test_silent_callers_do_not_hold_up_the_end_of_a_worker(start: Start, tiny: Tiny) -> None:
    process = start("EMBED", "services.embed", MODEL=str(tiny.embed), THREADS="1")
    await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
    sockets = connections(process)
    async with grpc.aio.insecure_channel(process.address()) as channel:
        calls = await silent_callers(channel)
        await ends(process)
        del calls
    for connection in sockets:
        connection.close()


async def test_silent_callers_do_not_hold_up_the_end_of_the_gateway(start: Start, redis8: RedisProcess) -> None:
    async with AsyncExitStack() as stack:
        worker_at = await stack.enter_async_context(serving(EmbedWorker()))
        process = start(
            "GATEWAY", "gateway", REDIS_URL=redis8.url, EMBED_TARGET=worker_at.address, RERANK_TARGET="127.0.0.1:1"
        )
        await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
        sockets = connections(process)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(process.address()))
        retrieval = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        await retrieval.CreateCollection(retrieval_pb2.CreateCollectionRequest(name="docs"))
        unsent = retrieval.UpsertDocuments()
        named = retrieval.UpsertDocuments()
        await named.write(retrieval_pb2.UpsertDocumentsRequest(collection="docs"))
        stored = retrieval.UpsertDocuments()
        document = retrieval_pb2.Document(id="a", text="text")
        await stored.write(retrieval_pb2.UpsertDocumentsRequest(collection="docs", documents=[document]))
        await stored.read()
        calls = await silent_callers(channel)
        await ends(process)
        for stream in (unsent, named, stored):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stream.read()
            status = rich_status(error.value)
            assert (status.code, status.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "NOT_READY",
            )
        del calls
        for connection in sockets:
            connection.close()


async def test_a_stream_that_waits_for_absent_workers_ends_with_the_process(start: Start) -> None:
    process = start(
        "GATEWAY", "gateway", EMBED_TARGET="127.0.0.1:1", RERANK_TARGET="127.0.0.1:1", STREAM_RETRY_SECONDS="3600"
    )
    await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
    async with grpc.aio.insecure_channel(process.address()) as channel:
        stream = embed_pb2_grpc.EmbedServiceStub(channel).EmbedStream()
        await stream.write(embed_pb2.EmbedStreamRequest(options=embed_pb2.EmbedOptions()))
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest())  # on the same connection: the stream has arrived
        await ends(process)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stream.read()
        assert rich_status(error.value).reason == "NOT_READY"


async def test_calls_that_nobody_has_taken_yet_are_told_that_the_process_ends(start: Start, tiny: Tiny) -> None:
    """A process that gets no processor time finds calls and SIGTERM together: none of the calls ends without a word."""
    process = start("EMBED", "services.embed", MODEL=str(tiny.embed), THREADS="1")
    await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
    async with grpc.aio.insecure_channel(process.address(), [("grpc.enable_retries", 0)]) as channel:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        await stub.GetModel(embed_pb2.GetModelRequest())
        os.kill(process.pid, signal.SIGSTOP)
        calls = [stub.Embed(embed_pb2.EmbedRequest(texts=[f"text {number}"])) for number in range(90)]
        codes = [asyncio.ensure_future(call.code()) for call in calls]
        await sent(channel)
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGCONT)
        assert set(await asyncio.gather(*codes)) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert await asyncio.to_thread(process.join) == 0


async def sent(channel: grpc.aio.Channel) -> None:
    """Returns when what was called before is on its way: a call was sent after it, and its time is up."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await embed_pb2_grpc.EmbedServiceStub(channel).GetModel(embed_pb2.GetModelRequest(), timeout=0.5)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def head(path: str, kind: str) -> bytes:
    """A request whose body is announced and does not come."""
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-type: application/{kind}", "transfer-encoding: chunked"]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_http_requests_that_were_accepted_are_finished_and_silent_ones_do_not_hold_up_the_end(
    start: Start, redis8: RedisProcess
) -> None:
    worker = EmbedWorker()
    async with serving(worker) as worker_at:
        process = start(
            "GATEWAY",
            "gateway",
            HTTP_LISTEN="127.0.0.1:0",
            REDIS_URL=redis8.url,
            EMBED_TARGET=worker_at.address,
            RERANK_TARGET="127.0.0.1:1",
        )
        address = (await asyncio.to_thread(process.wait_for, r"\bhttp on (\S+:\d+)")).group(1)
        await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
        host, _, port = address.rpartition(":")
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=None) as http:
            await http.post("/v1/collections", json={"name": "docs"})
            silent = [socket.create_connection((host, int(port))) for _ in range(4)]
            requests = (
                b"GET / HTT",
                head("/v1/embeddings", "json"),
                head("/v1/collections/docs/documents", "x-ndjson"),
            )
            for connection, sent in zip(silent[1:], requests, strict=True):
                connection.sendall(sent)
            worker.gate = asyncio.Event()
            worker.waiting.clear()
            accepted = asyncio.create_task(http.post("/v1/embeddings", json={"model": "stand-in", "input": "a"}))
            await worker.waiting.wait()
            os.kill(process.pid, signal.SIGTERM)
            while (await http.get("/readyz")).status_code == 200:
                pass
            worker.gate.set()
            assert (await accepted).status_code == 200
            assert await asyncio.to_thread(process.join) == 0
        for connection in silent:
            connection.close()
