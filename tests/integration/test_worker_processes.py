"""Both workers as real processes: start, health, signals, traces."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from deploy.local.process import Process, StartError, python_module
from services.api.embed import SERVICE as EMBED
from services.api.rerank import SERVICE as RERANK
from services.runtime.channel import ChannelSettings, channel
from services.runtime.telemetry import names
from services.runtime.telemetry.setup import Telemetry
from tests.support.otlp import attributes, named, receiver
from tests.support.tiny import Tiny
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

Start = Callable[..., Process]


@pytest.fixture
def start(tiny: Tiny, tmp_path: Path) -> Iterator[Start]:
    """Starts a worker on free ports; ends what still runs after the test."""
    processes: list[Process] = []

    def started(kind: str = "embed", **variables: str) -> Process:
        prefix = kind.upper()
        environment = {
            "PYTHONPATH": str(ROOT),
            f"{prefix}_LISTEN": "127.0.0.1:0",
            f"{prefix}_METRICS_LISTEN": "127.0.0.1:0",
            f"{prefix}_MODEL": str(getattr(tiny, kind)),
            f"{prefix}_THREADS": "1",
            **variables,
        }
        process = Process(
            kind, python_module(f"services.{kind}"), environment, tmp_path / f"{kind}-{len(processes)}.log"
        )
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.stop()


async def address(process: Process) -> str:
    return await asyncio.to_thread(process.address)


async def serving(process: Process) -> str:
    """The address, once the process serves."""
    await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
    return await address(process)


async def accepted_calls(process: Process) -> float:
    """Calls of Embed in progress or done, as the process's own endpoint tells it."""

    def read() -> str:
        with urllib.request.urlopen(f"http://{process.metrics_address()}/metrics", timeout=10) as response:
            return str(response.read(), "utf-8")

    names = "winnow_active_calls|rpc_server_call_duration_seconds_count"
    text = await asyncio.to_thread(read)
    return sum(float(value) for value in re.findall(rf'^(?:{names}){{.*"[^"]*/Embed".*}} (\S+)$', text, re.M))


async def ended(process: Process) -> int:
    return await asyncio.to_thread(process.join)


async def test_health_follows_the_life_of_the_process(start: Start) -> None:
    process = start()
    async with grpc.aio.insecure_channel(await address(process)) as to:
        health = health_pb2_grpc.HealthStub(to)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=EMBED), timeout=60, wait_for_ready=True)
        assert (await watch.read()).status == NOT_SERVING  # bound, and still loading
        liveness = await health.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=10)
        assert liveness.status == SERVING
        assert (await watch.read()).status == SERVING
        os.kill(process.pid, signal.SIGTERM)
        assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await watch.read()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await ended(process) == 0
    assert "Exception" not in process.tail()


async def test_what_was_accepted_is_answered_before_the_end(start: Start) -> None:
    process = start(EMBED_QUEUE_TOKENS="1000000")
    async with grpc.aio.insecure_channel(await serving(process)) as to:
        stub = embed_pb2_grpc.EmbedServiceStub(to)
        stream = stub.EmbedStream(timeout=60)
        await stream.write(embed_pb2.EmbedStreamRequest(items=[embed_pb2.EmbedStreamItem(id="a", text="gravity")]))
        first = await stream.read()
        assert isinstance(first, embed_pb2.EmbedStreamResponse)
        assert first.results[0].id == "a"
        texts = [f"{i} " + "gravity attracts two bodies " * 60 for i in range(6)]
        calls = [stub.Embed(embed_pb2.EmbedRequest(texts=texts), timeout=60) for _ in range(10)]
        while await accepted_calls(process) < 10:
            pass
        assert not all(call.done() for call in calls)  # there is work left when the signal comes
        os.kill(process.pid, signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stream.read()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Embed(embed_pb2.EmbedRequest(texts=["late"]), timeout=10)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        for call in calls:
            assert [result.WhichOneof("outcome") for result in (await call).results] == ["embedding"] * 6
    assert await ended(process) == 0


async def test_a_process_told_to_stop_while_it_loads_stops_at_once(start: Start) -> None:
    process = start()
    await address(process)
    os.kill(process.pid, signal.SIGINT)
    assert await ended(process) == 0


@pytest.mark.parametrize(
    ("kind", "variables", "said"),
    [
        ("embed", {"EMBED_FOO": "1"}, "EMBED_FOO: there is no such setting; did you mean EMBED_"),
        ("rerank", {"RERANK_MODLE": "x"}, "RERANK_MODLE: there is no such setting; did you mean RERANK_MODEL?"),
    ],
)
async def test_a_wrong_setting_stops_the_start(start: Start, kind: str, variables: dict[str, str], said: str) -> None:
    process = start(kind, **variables)
    assert await ended(process) == 2
    assert said in process.tail()
    assert "Traceback" not in process.tail()


async def test_a_model_that_is_not_there_ends_the_process_with_one_line(start: Start) -> None:
    process = start(EMBED_MODEL="/no/such/folder")
    assert await ended(process) == 1
    await asyncio.to_thread(process.wait_for, "the start failed: /no/such/folder")
    assert "Traceback" not in process.tail()


async def test_a_port_that_is_taken_ends_the_process(start: Start) -> None:
    taken = await address(start())
    second = start(EMBED_LISTEN=taken)
    assert await ended(second) == 1
    with pytest.raises(StartError, match="cannot listen"):
        await asyncio.to_thread(second.address)
    assert "Traceback" not in second.tail()
    assert taken in second.tail()


async def test_one_trace_over_both_workers_and_no_text_in_it_nor_in_the_logs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiver() as collected:
        environment = collected.environment()
        embed = start("embed", EMBED_LOG_LEVEL="DEBUG", **environment)
        rerank = start("rerank", RERANK_LOG_LEVEL="DEBUG", RERANK_LOG_FORMAT="json", **environment)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        telemetry = Telemetry.start("client")
        targets = [await serving(embed), await serving(rerank)]
        async with channel(targets[0], telemetry) as to_embed, channel(targets[1], telemetry) as to_rerank:
            with telemetry.tracer.start_as_current_span("search"):
                await embed_pb2_grpc.EmbedServiceStub(to_embed).Embed(
                    embed_pb2.EmbedRequest(texts=["a secret"]), timeout=30
                )
                await rerank_pb2_grpc.RerankServiceStub(to_rerank).Rerank(
                    rerank_pb2.RerankRequest(query="a secret", documents=["another", "more"]), timeout=30
                )
                with pytest.raises(grpc.aio.AioRpcError):
                    await rerank_pb2_grpc.RerankServiceStub(to_rerank).Rerank(
                        rerank_pb2.RerankRequest(query="a secret " * 5000, documents=["x"]), timeout=30
                    )
        spans = await collected.wait_for(lambda spans: len(named(spans, names.BATCH)) == 2 and len(spans) >= 15)
        await asyncio.to_thread(telemetry.shutdown)
    for process in (embed, rerank):
        assert await asyncio.to_thread(process.stop) == 0
        assert "secret" not in process.tail()
    by_id = {span.span_id: span for span in spans}
    (root,) = named(spans, "search")
    assert {span.trace_id for span in spans if span.name != names.BATCH} == {root.trace_id}
    for service, operation, name in (
        (f"{EMBED}/Embed", "embeddings", "winnow-embed"),
        (f"{RERANK}/Rerank", "rerank", "winnow-rerank"),
    ):
        client, server = sorted(
            (span for span in named(spans, service) if attributes(span.attributes)[names.RPC_STATUS] == "OK"),
            key=lambda span: -span.kind,
        )
        assert (client.kind, server.kind) == (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
        assert (client.parent_span_id, server.parent_span_id) == (root.span_id, client.span_id)
        assert attributes(server.attributes)[names.OPERATION] == operation
        assert collected.services[server.span_id] == name
        children = [span for span in spans if span.parent_span_id == server.span_id]
        assert sorted(span.name for span in children) == [names.FORWARD, names.QUEUE, names.TOKENIZE]
        (forward,) = named(children, names.FORWARD)
        batch = by_id[forward.links[0].span_id]
        assert [link.span_id for link in batch.links] == [server.span_id]
    assert "secret" not in str(spans)


async def test_mutual_tls_with_probes_on_a_plaintext_port(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    cert, key, ca = tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"
    leaf.private_key_pem.write_to_path(key)
    leaf.cert_chain_pems[0].write_to_path(cert)
    authority.cert_pem.write_to_path(ca)
    process = start(
        EMBED_TLS_CERT=str(cert), EMBED_TLS_KEY=str(key), EMBED_TLS_CA=str(ca), EMBED_HEALTH_LISTEN="127.0.0.1:0"
    )
    target = await serving(process)
    probe = (await asyncio.to_thread(process.wait_for, r"health on (\S+:\d+)")).group(1)
    async with grpc.aio.insecure_channel(probe) as to:
        status = await health_pb2_grpc.HealthStub(to).Check(health_pb2.HealthCheckRequest(service=EMBED), timeout=10)
        assert status.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await embed_pb2_grpc.EmbedServiceStub(to).GetModel(embed_pb2.GetModelRequest(), timeout=10)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    settings = ChannelSettings(tls=True, tls_ca=ca, tls_cert=cert, tls_key=key)
    async with channel(target, Telemetry(), settings) as to:
        await embed_pb2_grpc.EmbedServiceStub(to).GetModel(embed_pb2.GetModelRequest(), timeout=10)
    async with channel(target, Telemetry(), ChannelSettings()) as to:
        with pytest.raises(grpc.aio.AioRpcError):
            await embed_pb2_grpc.EmbedServiceStub(to).GetModel(embed_pb2.GetModelRequest(), timeout=10)


def test_the_port_is_bound_before_torch_is_imported() -> None:
    """What the composition roots import: probes need an answer within a second, torch takes several."""
    for kind in ("embed", "rerank"):
        code = f"import sys, services.{kind}.__main__; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0
