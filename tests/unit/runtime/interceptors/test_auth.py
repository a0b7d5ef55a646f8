"""Calls need a bearer token, and probes do not; a call has the name of its token or of its certificate."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.runtime import callers
from services.runtime.callers import Caller
from services.runtime.channel import ChannelSettings
from tests.support.certificates import client_certificate
from tests.support.scripted import Scripted, call
from tests.support.serving import PlainSettings, WorkerLikeSettings, failure, rich_status, serving
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc


async def test_calls_need_a_token_and_probes_do_not(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("search secret")
    async with serving(Scripted(), PlainSettings(auth_tokens_file=path)) as served:
        await call(served.address, ChannelSettings(token="secret"))
        for wrong in (None, "Secret", "secret-"):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(served.address, ChannelSettings(token=wrong))
            status = rich_status(error.value)
            assert (status.code, status.reason) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "UNAUTHENTICATED",
            )
        health = health_pb2_grpc.HealthStub(served.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == 1


async def test_reflection_needs_a_token_too(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("search secret")
    async with serving(Scripted(), PlainSettings(auth_tokens_file=path)) as served:
        reflect = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(list_services="*")
        seen = rich_status(await failure(reflect(iter([request]), timeout=10).read()))
        assert seen.reason == "UNAUTHENTICATED"
        answered = reflect(iter([request]), timeout=10, metadata=(("authorization", "Bearer secret"),))
        assert (await answered.read()).list_services_response.service


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic secret", "bearer  ", "Bearer secret,other", "=" * 5000]
)
async def test_any_other_authorization_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "tokens"
    path.write_text("search secret")
    async with serving(Scripted(), PlainSettings(auth_tokens_file=path)) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        for key in ("authorization", "authorization-bin"):
            sent = value.encode() + b"\xff" if key.endswith("-bin") else value
            error = await failure(stub.Embed(embed_pb2.EmbedRequest(), metadata=((key, sent),), timeout=10))
            assert rich_status(error).reason == "UNAUTHENTICATED"


class Named(Scripted):
    """Notes who calls."""

    def __init__(self) -> None:
        super().__init__(self.note)
        self.seen: list[Caller] = []

    async def note(self, request: object, context: object) -> None:
        self.seen.append(callers.current())


@asynccontextmanager
async def secured(
    folder: Path, client: Sequence[bytes], kind: type[PlainSettings] = PlainSettings, **settings: Any
) -> AsyncIterator[tuple[Named, "embed_pb2_grpc.EmbedServiceAsyncStub"]]:
    """A server with mutual TLS, and a stub that shows `client`, a certificate and its key."""
    leaf = trustme.CA().issue_cert("localhost")
    files = {"cert": b"".join(blob.bytes() for blob in leaf.cert_chain_pems), "key": leaf.private_key_pem.bytes()}
    for name, content in {**files, "ca": AUTHORITY.cert_pem.bytes()}.items():
        (folder / name).write_bytes(content)
    tls: dict[str, Any] = {f"tls_{name}": folder / name for name in ("cert", "key", "ca")}
    server = Named()
    async with serving(server, kind(**tls, **settings)) as served:
        shown = grpc.ssl_channel_credentials(leaf.cert_chain_pems[-1].bytes(), client[1], client[0])
        options = [("grpc.ssl_target_name_override", "localhost")]
        async with grpc.aio.secure_channel(served.address, shown, options) as channel:
            yield server, embed_pb2_grpc.EmbedServiceStub(channel)


AUTHORITY = trustme.CA()
SPIFFE = "spiffe://example.org/ns/search/sa/web"


@pytest.mark.parametrize(
    ("uris", "name"),
    [
        ((SPIFFE,), SPIFFE),
        ((), "web"),
        (("https://example.org/web",), "web"),
        ((SPIFFE, "spiffe://example.org/ns/admin/sa/admin"), "web"),  # such a certificate is no SVID
    ],
)
async def test_a_client_has_the_name_of_its_certificate(tmp_path: Path, uris: tuple[str, ...], name: str) -> None:
    async with secured(tmp_path, client_certificate(AUTHORITY, "web", *uris)) as (server, stub):
        await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
        stream = stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest()]), timeout=10)
        assert len([response async for response in stream]) == 1
    assert server.seen == [Caller(name)] * 2


async def test_a_token_with_a_name_goes_before_the_certificate(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("search secret\nnameless\n")
    client = client_certificate(AUTHORITY, "web", SPIFFE)
    async with secured(tmp_path, client, auth_tokens_file=tokens) as (server, stub):
        for token in ("secret", "nameless"):
            sent = (("authorization", f"Bearer {token}"),)
            await stub.Embed(embed_pb2.EmbedRequest(), metadata=sent, timeout=10)
        error = await failure(stub.Embed(embed_pb2.EmbedRequest(), timeout=10))
        assert rich_status(error).reason == "UNAUTHENTICATED"
    assert server.seen == [Caller("search", listed=True), Caller(SPIFFE)]


@pytest.mark.parametrize(("kind", "name"), [(PlainSettings, "web"), (WorkerLikeSettings, "their caller")])
async def test_who_names_another_caller_is_believed_by_workers_alone(
    tmp_path: Path, kind: type[PlainSettings], name: str
) -> None:
    async with secured(tmp_path, client_certificate(AUTHORITY, "web"), kind) as (server, stub):
        await stub.Embed(embed_pb2.EmbedRequest(), metadata=(("winnow-caller", "their%20caller"),), timeout=10)
    assert server.seen == [Caller(name)]


async def test_without_a_token_nobody_is_believed(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("gateway secret")
    server = Named()
    async with serving(server, WorkerLikeSettings(auth_tokens_file=tokens)) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        named = ("winnow-caller", "search")
        error = await failure(stub.Embed(embed_pb2.EmbedRequest(), metadata=(named,), timeout=10))
        assert rich_status(error).reason == "UNAUTHENTICATED"
        for metadata in ((named,), ()):
            sent = (("authorization", "Bearer secret"), *metadata)
            await stub.Embed(embed_pb2.EmbedRequest(), metadata=sent, timeout=10)
    assert server.seen == [Caller("search"), Caller("gateway", listed=True)]


async def test_without_tokens_and_certificates_a_caller_has_no_name() -> None:
    server = Named()
    async with serving(server) as served:
        await embed_pb2_grpc.EmbedServiceStub(served.channel).Embed(embed_pb2.EmbedRequest(), timeout=10)
    assert server.seen == [Caller()]
