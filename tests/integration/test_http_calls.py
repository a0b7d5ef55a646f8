"""What holds for every HTTP request as it does over gRPC: callers, deadlines, cancellation, limits, telemetry."""

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import trustme
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.runtime.telemetry.setup import Telemetry
from tests.support.certificates import client_certificate
from tests.support.gateway import Running, running
from tests.support.http import client, exchanged
from tests.support.waiting import until

ASKED = {"model": "stand-in", "input": "a cat"}
LISTEN = "127.0.0.1:0"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_tokens_access_and_quotas(tmp_path: Path) -> None:
    tokens, callers = tmp_path / "tokens", tmp_path / "callers.toml"
    tokens.write_text("team-a secret-a\nteam-b secret-b\n")
    callers.write_text(
        '[callers.team-a]\nmethods = ["Embed"]\ntokens_per_second = 0.5\nburst_tokens = 100\n'
        '[callers.team-b]\nmethods = ["Rerank"]\n'
    )
    files: dict[str, Any] = {"auth_tokens_file": tokens, "callers_file": callers}
    async with running(http_listen=LISTEN, **files) as gateway, client(gateway) as http:
        for headers in ({}, bearer("wrong"), {"authorization": "Basic eA=="}):
            answer = await http.post("/v1/embeddings", json=ASKED, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json()["error"]["type"] == "authentication_error"
        assert (await http.post("/v1/embeddings", json=ASKED, headers=bearer("secret-a"))).status_code == 200
        refused = await http.post("/v1/embeddings", json=ASKED, headers=bearer("secret-b"))
        assert refused.status_code == 403
        assert '"team-b" may not call Embed' in refused.json()["error"]["message"]
        large = {**ASKED, "input": ["x" * 400, "y" * 400]}
        await http.post("/v1/embeddings", json=large, headers=bearer("secret-a"))
        over = await http.post("/v1/embeddings", json={**ASKED, "input": "z" * 400}, headers=bearer("secret-a"))
        assert over.status_code == 429
        assert int(over.headers["retry-after"]) >= 1
        assert over.json()["error"]["code"] == "quota_exceeded"
        assert (await http.get("/healthz")).status_code == 200  # probes have no token


async def test_a_caller_without_a_token_is_refused_before_its_body_is_read(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    async with running(http_listen=LISTEN, auth_tokens_file=tokens) as gateway:
        head = (
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n"
        )
        assert b" 401 " in await exchanged(gateway, head)


async def test_a_deadline_passes() -> None:
    async with running(http_listen=LISTEN) as gateway, client(gateway) as http:
        await http.post("/v1/embeddings", json=ASKED)
        gateway.embed_worker.gate = asyncio.Event()
        late = await http.post("/v1/embeddings", json={**ASKED, "input": "b"}, headers={"x-request-timeout-ms": "200"})
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_too_short"
        await until(lambda: gateway.embed_worker.cancelled)
        for wrong in ("-1", "nan", "soon", "1e99"):
            answer = await http.post("/v1/embeddings", json=ASKED, headers={"x-request-timeout-ms": wrong})
            assert answer.status_code == 400


async def test_a_client_that_leaves_cancels_its_work() -> None:
    async with running(http_listen=LISTEN) as gateway, client(gateway) as http:
        gateway.embed_worker.gate = asyncio.Event()
        asking = asyncio.create_task(http.post("/v1/embeddings", json=ASKED))
        await gateway.embed_worker.waiting.wait()
        assert gateway.served.lifecycle.calls == 1
        asking.cancel()
        await until(lambda: gateway.embed_worker.cancelled)
        await until(lambda: gateway.served.lifecycle.calls == 0)


async def test_draining_finishes_what_was_accepted() -> None:
    async with running(http_listen=LISTEN) as gateway, client(gateway) as http:
        gateway.embed_worker.gate = asyncio.Event()
        accepted = asyncio.create_task(http.post("/v1/embeddings", json=ASKED))
        await gateway.embed_worker.waiting.wait()
        gateway.served.lifecycle.stop()
        refused = await http.post("/v1/embeddings", json=ASKED)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200
        gateway.embed_worker.gate.set()
        assert (await accepted).status_code == 200


async def test_the_callers_trace_goes_on() -> None:
    spans = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with running(http_listen=LISTEN, telemetry=Telemetry(tracers)) as gateway, client(gateway) as http:
        await http.post("/v1/embeddings", json=ASKED, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
        served = [each for each in spans.get_finished_spans() if each.kind is SpanKind.SERVER]
        [span] = [each for each in served if each.name == "winnow.embed.v1.EmbedService/Embed"]
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == trace
    tracers.shutdown()


async def test_max_calls_holds_for_both_protocols() -> None:
    async with running(http_listen=LISTEN, max_calls=1) as gateway, client(gateway) as http:
        gateway.embed_worker.gate = asyncio.Event()
        first = asyncio.create_task(http.post("/v1/embeddings", json=ASKED))
        await gateway.embed_worker.waiting.wait()
        assert (await http.post("/v1/embeddings", json=ASKED)).status_code == 429
        gateway.embed_worker.gate.set()
        assert (await first).status_code == 200
        assert (await http.post("/v1/embeddings", json=ASKED)).status_code == 200


async def test_mutual_tls_names_the_caller(tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    cert, key, ca = tmp_path / "cert", tmp_path / "key", tmp_path / "ca"
    cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    ca.write_bytes(authority.cert_pem.bytes())
    pem = tmp_path / "client"
    pem.write_bytes(b"".join(client_certificate(authority, "team-a", "spiffe://winnow/team-a")))
    context = ssl.create_default_context(cafile=str(ca))
    files: dict[str, Any] = {"tls_cert": cert, "tls_key": key, "tls_ca": ca}
    async with running(http_listen=LISTEN, **files) as gateway:
        address = f"https://{gateway.served.http}"
        async with httpx.AsyncClient(base_url=address, verify=context, trust_env=False) as http:
            with pytest.raises(httpx.HTTPError):
                await http.post("/v1/embeddings", json=ASKED)
        context.load_cert_chain(pem)
        async with httpx.AsyncClient(base_url=address, verify=context, trust_env=False) as http:
            assert (await http.post("/v1/embeddings", json=ASKED)).status_code == 200
        assert gateway.embed_worker.callers == ["spiffe://winnow/team-a"]


JSON = "content-type: application/json"


def post(body: bytes, *headers: str, path: str = "/v1/embeddings") -> bytes:
    """A request as it is sent, with a content-length unless the headers say another, or that there is none."""
    framed = any(header.startswith(("content-length", "transfer-encoding")) for header in headers)
    lines = [f"POST {path} HTTP/1.1", "host: x", *headers, *([] if framed else [f"content-length: {len(body)}"])]
    return "\r\n".join([*lines, "", ""]).encode() + body


BOMB = gzip.compress(b" " * (64 << 20))
LIMIT = 1 << 16


REFUSED = [
    (post(b"{}"), 415),
    (post(b"{}", "content-type: text/plain"), 415),
    (post(b"{", JSON), 400),
    (post(b"[]", JSON), 400),
    (post(b"\xff", JSON), 400),
    (post(b'{"model": "stand-in", "input": "\\ud800"}', JSON), 400),
    (post(b'{"model": "stand-in", "input": "x", "dimensions": NaN}', JSON), 400),
    (post(b'{"model": "stand-in", "input": "x", "dimensions": 1e999}', JSON), 400),
    (post(b'{"query": "x", "minScore": NaN}', JSON, path="/v1/search"), 400),
    (post(b'{"query": "x", "minScore": 1e999}', JSON, path="/v1/search"), 400),
    (post(b'{"query": "\\ud800"}', JSON, path="/v1/search"), 400),
    (post(b"[" * 60_000, JSON), 400),
    (post(b"[" * 60_000, JSON, path="/v1/search"), 400),
    (post(b" " * (LIMIT + 1), JSON), 413),
    (post(b"", JSON, "content-length: 99999999999"), 413),
    (post(b"20000\r\n" + b" " * 0x20000, JSON, "transfer-encoding: chunked"), 413),
    (post(BOMB, JSON, "content-encoding: gzip"), 413),
    (post(b"no gzip", JSON, "content-encoding: gzip"), 400),
    (post(b"x", JSON, "content-encoding: br"), 415),
    (post(gzip.compress(json.dumps(ASKED).encode(), mtime=0), JSON, "content-encoding: gzip"), 200),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"nonsense\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
    (b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"y" * (1 << 17), 400),
]


async def test_what_is_no_request_is_refused(hostile: Running) -> None:
    for sent, status in REFUSED:
        answer = await exchanged(hostile, sent)
        assert int(answer.split(b" ", 2)[1]) == status, (sent[:200], answer)


@pytest.fixture
async def hostile() -> AsyncIterator[Running]:
    async with running(http_listen=LISTEN, max_message_bytes=LIMIT) as gateway:
        yield gateway


async def test_pipelined_requests_are_answered_in_order(hostile: Running) -> None:
    both = post(json.dumps(ASKED).encode(), JSON) + b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = await exchanged(hostile, both, whole=True)
    assert answer.index(b'"embedding"') < answer.index(b"\r\n\r\nok\n")


async def test_a_body_that_never_ends_has_a_deadline(hostile: Running) -> None:
    head = post(b"5\r\n[1,2,\r\n", JSON, "transfer-encoding: chunked", "x-request-timeout-ms: 100")
    assert b" 408 " in await exchanged(hostile, head)
