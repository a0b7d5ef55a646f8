"""A channel whose certificates are replaced while it is open."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.runtime.channel import ChannelSettings, channel
from services.runtime.reloading_channel import ReloadingChannel
from services.runtime.telemetry.setup import Telemetry
from tests.support.certificates import Certificates, garbage
from tests.support.scripted import Scripted, call
from tests.support.serving import PlainSettings, serving
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc


class Clock:
    """Seconds pass when the test says so."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


async def test_a_channel_shows_its_renewed_certificate(tmp_path: Path) -> None:
    """Both sides' files are replaced, by another CA: old connections end well, new calls are made with the new ones."""
    files, clock = Certificates(tmp_path), Clock()
    began, release = asyncio.Event(), asyncio.Event()

    async def answer(
        request: embed_pb2.EmbedRequest | embed_pb2.EmbedStreamRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        if isinstance(request, embed_pb2.EmbedRequest) and request.texts:
            began.set()
            await release.wait()

    settings = PlainSettings(tls_cert=files.cert, tls_key=files.key, tls_ca=files.ca)
    mutual = ChannelSettings(tls=True, tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key)
    async with serving(Scripted(answer), settings) as served, channel(served.address, Telemetry(), mutual) as to:
        assert isinstance(to, ReloadingChannel)
        to._clock = clock
        stub = embed_pb2_grpc.EmbedServiceStub(to)
        long = stub.Embed(embed_pb2.EmbedRequest(texts=["long"]), timeout=30)
        await began.wait()
        old = to.present()
        files.issue()
        assert to.present() is old  # it does not look at the files for every call
        clock.now += 2
        await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
        stream = stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest()]), timeout=10)
        assert await stream.read() == embed_pb2.EmbedStreamResponse()
        assert to.present() is not old
        release.set()
        await long


@pytest.mark.parametrize("what", ["truncated", "empty", "another's key", "gone"])
async def test_while_tls_files_are_bad_both_sides_go_on_with_the_last_good_ones(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    for side in ("server", "client"):
        (tmp_path / side).mkdir()
    files = Certificates(tmp_path / "server")
    for path in (files.cert, files.key, files.ca):
        (tmp_path / "client" / path.name).write_bytes(path.read_bytes())
    mine, clock = Certificates.__new__(Certificates), Clock()
    mine.cert, mine.key, mine.ca = (tmp_path / "client" / path.name for path in (files.cert, files.key, files.ca))
    settings = PlainSettings(tls_cert=files.cert, tls_key=files.key, tls_ca=files.ca)
    mutual = ChannelSettings(tls=True, tls_ca=mine.ca, tls_cert=mine.cert, tls_key=mine.key)
    async with serving(Scripted(), settings) as served, channel(served.address, Telemetry(), mutual) as to:
        assert isinstance(to, ReloadingChannel)
        to._clock = clock
        old = to.present()
        garbage(files, what)
        await call(served.address, mutual)  # a new connection, while the server's files are bad
        garbage(mine, what)
        clock.now += 2
        await embed_pb2_grpc.EmbedServiceStub(to).Embed(embed_pb2.EmbedRequest(), timeout=10)
        assert to.present() is old
        clock.now += 2
        to.present()
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == 2  # one for each side
        assert "PRIVATE KEY" not in caplog.text
