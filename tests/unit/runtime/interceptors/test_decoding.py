"""Requests are decompressed, counted and parsed within limits, after the call has been admitted."""

import gc
import gzip
from pathlib import Path

import grpc
import pytest

from services.runtime.errors import InvalidFields
from services.runtime.interceptors.interceptor import REFLECTION
from tests.support.scripted import SERVICE, Scripted
from tests.support.serving import PlainSettings, Served, failure, rich_status, serving
from tests.support.waiting import until
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

EMBED = f"/{SERVICE}/Embed"
CODES = grpc.StatusCode
LIMIT = 1 << 17


def raw(served: Served, method: str = EMBED) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    """The method, without any encoding of the request."""
    return served.channel.unary_unary(method, request_serializer=None, response_deserializer=None)


async def said(served: Served, data: bytes, method: str = EMBED) -> str:
    seen = rich_status(await failure(raw(served, method)(data, timeout=10)))
    assert (seen.code, seen.reason) == (CODES.INVALID_ARGUMENT, "INVALID_FIELD")
    return str(seen.status.message)


async def test_items_are_counted_before_they_are_parsed() -> None:
    application = Scripted()
    async with serving(application, PlainSettings(max_items=3)) as served:
        few = b"\n\0" * (1 << 15)
        await raw(served)(few, timeout=10)  # too small to matter: its handler counts
        message = await said(served, few + b"\n\0")
        assert message == "texts: has more than 3 items; at most 3 are allowed in one request"
    assert application.calls == 1


@pytest.mark.parametrize(
    "method",
    [f"/{SERVICE}/GetModel", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"],
)
async def test_a_request_without_lists_is_small(method: str) -> None:
    async with serving(Scripted()) as served:
        large = b"\x7a\x81\x80\x04" + bytes((1 << 16) + 1)
        assert "at most 65536 fit into one message" in await said(served, large, method)


async def test_reflection_reads_small_requests_only() -> None:
    async with serving(Scripted()) as served:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        method = served.channel.stream_stream(f"{REFLECTION}v1alpha.ServerReflection/ServerReflectionInfo", None, None)
        call = method()
        await call.write(bytes(1 << 17))
        assert rich_status(await failure(call.read())).code is CODES.INVALID_ARGUMENT


async def test_gzip_is_read_up_to_the_limit() -> None:
    application = Scripted()
    async with serving(application, PlainSettings(max_message_bytes=LIMIT)) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        gzipped = grpc.Compression.Gzip
        text = "x" * (LIMIT - 8)
        await stub.Embed(embed_pb2.EmbedRequest(texts=[text]), compression=gzipped, timeout=10)
        large = stub.Embed(embed_pb2.EmbedRequest(texts=[text, text]), compression=gzipped, timeout=10)
        assert "uncompressed" in rich_status(await failure(large)).status.message
        call = stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest()] * 2), compression=gzipped, timeout=10)
        assert len([answer async for answer in call]) == 2
        deflated = stub.Embed(embed_pb2.EmbedRequest(texts=[text]), compression=grpc.Compression.Deflate, timeout=10)
        assert (await failure(deflated)).code() is CODES.UNIMPLEMENTED
    assert application.calls == 2


@pytest.mark.parametrize(
    "data", [b"\x1f\x8b", b"\x1f\x8bgarbage", gzip.compress(b"", mtime=0)[:-1], gzip.compress(b"", mtime=0) + b"\0"]
)
async def test_what_is_not_gzip_after_all(data: bytes) -> None:
    async with serving(Scripted()) as served:
        assert "is not a valid message" in await said(served, data)


async def test_who_has_no_token_is_refused_before_the_request_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("search secret")
    async with serving(Scripted(), PlainSettings(auth_tokens_file=path)) as served:
        method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = served.channel.stream_unary(EMBED, None, None)
        assert rich_status(await failure(method(timeout=10))).reason == "UNAUTHENTICATED"  # it has sent nothing yet
        # As long as it is refused for its token, what is in it does not matter.
        garbage = raw(served)(b"\xff" * 1000, timeout=10)
        assert rich_status(await failure(garbage)).reason == "UNAUTHENTICATED"


async def test_a_refused_request_is_freed_without_the_garbage_collector() -> None:
    """A problem's traceback refers to the request, and grpc keeps what ended the call."""

    def problems() -> set[int]:
        return {id(each) for each in gc.get_objects() if issubclass(type(each), InvalidFields)}

    async with serving(Scripted()) as served:
        gc.collect()
        gc.disable()
        others = problems()  # that earlier tests have left behind
        try:
            for data in (b"\xff" * 100_000, b"\n\0" * 100_000):
                await said(served, data)
            await until(lambda: problems() <= others)
        finally:
            gc.enable()
