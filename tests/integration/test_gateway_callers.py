"""A gateway as a process of its own, with a file of tokens and a file of callers."""

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2

from deploy.local.process import Process, StartError, python_module
from tests.support.certificates import client_certificate, replace
from tests.support.redis import RedisProcess
from tests.support.serving import RichStatus, WorkerLikeSettings, failure, rich_status, serving
from tests.support.workers import EmbedWorker
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2 as pb
from winnow.retrieval.v1 import retrieval_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
TOKENS = "team-a secret-a\nteam-b secret-b\nadmin secret-admin\n"
CALLERS = """
[default]
methods = []

[callers.team-a]
methods = ["read", "write"]
collections = ["a-"]

[callers.team-b]
methods = ["read"]
collections = ["b-", "shared"]
tokens_per_second = 0.5
burst_tokens = 100

[callers.admin]
methods = ["read", "write"]
"""


@dataclass
class Team:
    """Stubs that send one token."""

    channel: grpc.aio.Channel
    token: str

    @property
    def sent(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer secret-{self.token}"),)

    async def embed(self, *texts: str) -> embed_pb2.EmbedResponse:
        stub = embed_pb2_grpc.EmbedServiceStub(self.channel)
        return await stub.Embed(embed_pb2.EmbedRequest(texts=texts), metadata=self.sent, timeout=20)

    async def stream(self, *texts: str) -> list[str]:
        items = [embed_pb2.EmbedStreamItem(id=text, text=text) for text in texts]
        stub = embed_pb2_grpc.EmbedServiceStub(self.channel)
        call = stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest(items=items)]), metadata=self.sent, timeout=40)
        return [result.id async for response in call for result in response.results]

    async def call(self, method: str, **fields: object) -> object:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(self.channel)
        request = getattr(pb, f"{method}Request")(**fields)
        return await getattr(stub, method)(request, metadata=self.sent, timeout=20)

    async def refused(self, method: str, **fields: object) -> RichStatus:
        return rich_status(await failure(self.call(method, **fields)))


@dataclass
class Running:
    process: Process
    worker: EmbedWorker
    file: Path
    a: Team
    b: Team
    admin: Team

    async def metric(self, name: str) -> dict[str, float]:
        """Values by labels, from the Prometheus endpoint."""
        port = re.search(r"metrics on \S+:(\d+)", self.process.tail())
        assert port
        url = f"http://127.0.0.1:{port[1]}/metrics"
        text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=20).read())).decode()
        return {labels: float(value) for labels, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)}


def gateway_process(folder: Path, **variables: str) -> Process:
    environment = {
        "PYTHONPATH": str(ROOT),
        "GATEWAY_LISTEN": "127.0.0.1:0",
        "GATEWAY_METRICS_LISTEN": "127.0.0.1:0",
        "GATEWAY_RERANK_TARGET": "127.0.0.1:1",
        "GATEWAY_CALLERS_FILE": str(folder / "callers.toml"),
        **variables,
    }
    return Process("gateway", python_module("gateway"), environment, folder / "gateway.log")


@asynccontextmanager
async def running(folder: Path, redis_url: str = "") -> AsyncIterator[Running]:
    (folder / "tokens").write_text(TOKENS)
    (folder / "callers.toml").write_text(CALLERS)
    worker = EmbedWorker()
    async with serving(worker, WorkerLikeSettings()) as worker_at:
        process = gateway_process(
            folder,
            GATEWAY_AUTH_TOKENS_FILE=str(folder / "tokens"),
            GATEWAY_EMBED_TARGET=worker_at.address,
            GATEWAY_REDIS_URL=redis_url,
        )
        try:
            address = await asyncio.to_thread(process.address)
            await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")
            async with grpc.aio.insecure_channel(address) as channel:
                teams = [Team(channel, token) for token in ("a", "b", "admin")]
                yield Running(process, worker, folder / "callers.toml", *teams)
        finally:
            await asyncio.to_thread(process.stop)


def named(answer: object) -> Sequence[str]:
    assert isinstance(answer, pb.ListCollectionsResponse)
    return [collection.name for collection in answer.collections]


async def test_methods_and_collections(tmp_path: Path, redis8: RedisProcess) -> None:
    async with running(tmp_path, redis8.url) as gateway:
        a, b, admin = gateway.a, gateway.b, gateway.admin
        await a.call("CreateCollection", name="a-docs")
        for name in ("b-docs", "hidden"):
            await admin.call("CreateCollection", name=name)

        refused = await b.refused("DeleteCollection", name="b-docs")
        info = refused.detail(error_details_pb2.ErrorInfo)
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
        assert dict(info.metadata) == {"caller": "team-b", "needs": "the method DeleteCollection or the group write"}
        refused = await a.refused("CreateCollection", name="docs")
        assert refused.reason == "PERMISSION_DENIED"
        assert refused.detail(error_details_pb2.ErrorInfo).metadata["needs"] == "the collection docs"

        for name in ("b-docs", "missing"):  # it is not told which of them exists
            source = pb.CollectionSource(name=name)
            assert (await a.refused("Search", query="x", collection=source)).reason == "PERMISSION_DENIED"
            assert (await a.refused("GetCollection", name=name)).reason == "PERMISSION_DENIED"
            assert (await a.refused("GetDocuments", collection=name, ids=["1"])).reason == "PERMISSION_DENIED"
            assert (await a.refused("DeleteDocuments", collection=name, ids=["1"])).reason == "PERMISSION_DENIED"
            assert (await a.refused("DeleteCollection", name=name)).reason == "PERMISSION_DENIED"
            assert (await a.refused("DeleteAlias", alias=name)).reason == "PERMISSION_DENIED"
            assert (await a.refused("SetAlias", alias="a-alias", collection=name)).reason == "PERMISSION_DENIED"
            assert (await a.refused("SetAlias", alias=name, collection="a-docs")).reason == "PERMISSION_DENIED"

        await admin.call("SetAlias", alias="a-alias", collection="hidden")
        await admin.call("SetAlias", alias="shared", collection="b-docs")
        await admin.call("SetAlias", alias="another", collection="b-docs")
        refused = await a.refused("GetCollection", name="a-alias")  # the alias is its own, what it points at is not
        assert refused.reason == "PERMISSION_DENIED"
        assert "hidden" not in refused.status.message
        found = await b.call("GetCollection", name="shared")
        assert isinstance(found, pb.GetCollectionResponse)
        assert (found.collection.name, list(found.collection.aliases)) == ("b-docs", ["shared"])

        assert named(await a.call("ListCollections")) == ["a-docs"]
        assert named(await b.call("ListCollections")) == ["b-docs"]
        assert named(await admin.call("ListCollections")) == ["a-docs", "b-docs", "hidden"]

        refusals = await gateway.metric("winnow_caller_refusals_total")
        assert refusals['caller="team-b",reason="permission_denied"'] == 1


async def test_a_stream_of_upserts_is_refused_in_another_team_s_collection(
    tmp_path: Path, redis8: RedisProcess
) -> None:
    async with running(tmp_path, redis8.url) as gateway:
        await gateway.admin.call("CreateCollection", name="b-docs")
        stub = retrieval_pb2_grpc.RetrievalServiceStub(gateway.a.channel)
        message = pb.UpsertDocumentsRequest(collection="b-docs", documents=[pb.Document(id="1", text="x")])
        error = await failure(stub.UpsertDocuments(iter([message]), metadata=gateway.a.sent, timeout=20).read())
        assert rich_status(error).reason == "PERMISSION_DENIED"


async def test_over_its_quota_a_caller_is_told_the_limit_and_others_are_not_touched(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        await gateway.b.embed("x" * 90)
        refused = rich_status(await failure(gateway.b.embed("y" * 90)))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        [violation] = refused.detail(error_details_pb2.QuotaFailure).violations
        assert (violation.subject, violation.description) == ("team-b", "0.5 tokens per second")
        # The stand-in has a token for each character: 90 are used of 100, and the estimate of the second text is 38.
        delay = refused.detail(error_details_pb2.RetryInfo).retry_delay
        assert 50 < delay.ToTimedelta().total_seconds() <= 56
        assert refused.trailers["grpc-retry-pushback-ms"] == "-1"
        for _ in range(3):
            await gateway.b.embed("x" * 90)  # from the cache: nothing is computed
            await gateway.a.embed("y" * 90)
        assert gateway.worker.callers == ["team-b", "team-a"]
        assert await gateway.metric("winnow_caller_tokens_total") == {'caller="team-a"': 90, 'caller="team-b"': 90}
        refusals = await gateway.metric("winnow_caller_refusals_total")
        assert refusals == {'caller="team-b",reason="quota_exceeded"': 1}


async def test_a_new_file_holds_for_the_next_call_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        await gateway.b.embed("x" * 100)
        await failure(gateway.b.embed("y"))
        unlimited = CALLERS.replace("tokens_per_second = 0.5\nburst_tokens = 100\n", "")
        replace(gateway.file, unlimited.replace('["read", "write"]', "[]").encode())
        await gateway.b.embed("y")
        assert rich_status(await failure(gateway.a.embed("z"))).reason == "PERMISSION_DENIED"
        replace(gateway.file, b"[default]\nmethods = ['reed']\n")
        await gateway.b.embed("z")
        await asyncio.to_thread(gateway.process.wait_for, 'line 2: default.methods there is no .* "reed"')


async def test_a_stream_waits_for_its_quota_and_loses_nothing(tmp_path: Path) -> None:
    texts = [f"{number} {'x' * 60}" for number in range(30)]
    rate = CALLERS.replace("0.5", "2000").replace("burst_tokens = 100", "burst_tokens = 500\ntokens_in_flight = 200")
    async with running(tmp_path) as gateway:
        replace(gateway.file, rate.encode())
        began = asyncio.get_running_loop().time()
        assert sorted(await gateway.b.stream(*texts)) == sorted(texts)
        took = asyncio.get_running_loop().time() - began
        tokens = sum(map(len, texts))
        # A burst is free, and what is in flight is estimated: a text of 62 characters, 62 tokens to this worker, at 28.
        assert took > (tokens - 500 - 200 * 62 / 28) / 2000
        assert set(gateway.worker.callers) == {"team-b"}
        assert await gateway.metric("winnow_caller_tokens_total") == {'caller="team-b"': tokens}


async def test_a_caller_is_known_by_its_certificate(tmp_path: Path) -> None:
    authority, leaf = trustme.CA(), trustme.CA().issue_cert("localhost")
    spiffe = "spiffe://example.org/ns/search/sa/web"
    files = {
        "tls_cert": b"".join(blob.bytes() for blob in leaf.cert_chain_pems),
        "tls_key": leaf.private_key_pem.bytes(),
        "tls_ca": authority.cert_pem.bytes(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "callers.toml").write_text(f'[default]\nmethods = []\n[callers."{spiffe}"]\nmethods = ["Embed"]\n')
    worker = EmbedWorker()
    async with serving(worker, WorkerLikeSettings()) as worker_at:
        tls = {f"GATEWAY_{name.upper()}": str(tmp_path / name) for name in files}
        process = gateway_process(tmp_path, GATEWAY_EMBED_TARGET=worker_at.address, **tls)
        try:
            address = await asyncio.to_thread(process.address)
            await asyncio.to_thread(process.wait_for, r"\bserving winnow\.")

            async def embed(*uris: str) -> embed_pb2.EmbedResponse:
                cert, key = client_certificate(authority, "web", *uris)
                shown = grpc.ssl_channel_credentials(leaf.cert_chain_pems[-1].bytes(), key, cert)
                options = [("grpc.ssl_target_name_override", "localhost")]
                async with grpc.aio.secure_channel(address, shown, options) as channel:
                    return await embed_pb2_grpc.EmbedServiceStub(channel).Embed(
                        embed_pb2.EmbedRequest(texts=["a"]), timeout=20
                    )

            assert len((await embed(spiffe)).results) == 1
            for stranger in (["spiffe://example.org/ns/search/sa/other"], []):
                refused = rich_status(await failure(embed(*stranger)))
                name = stranger[0] if stranger else "web"
                assert refused.detail(error_details_pb2.ErrorInfo).metadata["caller"] == name
                assert refused.code is grpc.StatusCode.PERMISSION_DENIED
        finally:
            await asyncio.to_thread(process.stop)
    assert worker.callers == [spiffe]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[default]\n\n[callers.a]\nmethod = 1\n", "line 4: callers.a.method is no key"), (None, "No such file")],
)
def test_a_wrong_file_stops_the_start_in_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "callers.toml").write_bytes(content)
    process = gateway_process(tmp_path)
    try:
        with pytest.raises(StartError, match="status 1"):
            process.address()
        assert said in process.tail()
        assert "Traceback" not in process.tail()
    finally:
        process.stop()
