import asyncio
import os
import time
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.bearer_tokens import BearerTokens
from services.runtime.channel import ChannelSettings, channel
from services.runtime.reloading_channel import ReloadingChannel
from services.runtime.reloading_files import ReloadingFiles
from services.runtime.telemetry.setup import Telemetry
from tests.support.scripted import Scripted
from tests.support.serving import PlainSettings, failure, serving, told
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc


def replace(path: Path, content: bytes) -> None:
    """As Kubernetes does it: another file in its place."""
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(content)
    os.replace(fresh, path)


async def call(address: str, settings: ChannelSettings) -> None:
    async with channel(address, Telemetry(), settings) as to:
        await embed_pb2_grpc.EmbedServiceStub(to).Embed(embed_pb2.EmbedRequest(), timeout=10)


def test_tokens_are_read_by_line(tmp_path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# who may call\n\nsecret-one\nsearch secret-two\n")
    tokens = BearerTokens(path)
    assert tokens.name_of("secret-one") == ""
    assert tokens.name_of("secret-two") == "search"
    for unknown in ("", "search", "secret-", "secret-one\nsecret-two", "#"):
        assert tokens.name_of(unknown) is None


def test_a_changed_file_of_tokens_is_picked_up_and_a_missing_one_is_survived(tmp_path) -> None:
    path = tmp_path / "tokens"
    path.write_text("old")
    tokens = BearerTokens(path)
    replace(path, b"new")
    assert tokens.name_of("old") is None
    assert tokens.name_of("new") == ""
    path.unlink()
    assert tokens.name_of("new") == ""


def test_a_file_without_tokens_stops_the_start(tmp_path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# none yet\n")
    with pytest.raises(ValueError, match="no token"):
        BearerTokens(path)


BAD = {
    "empty": b"",
    "only comments": b"# none\n  # yet\n\n",
    "not UTF-8": b"name \xff\xfesecret",
    "UTF-16": "name secret".encode("utf-16"),
    "white space within the token": b"name sec ret\n",
    "a control character": b"name sec\x1cret\n",
    "a zero byte": b"good\nsec\x00ret",
    "not ASCII": "name sécret".encode(),
    "a no-break space": "name\u00a0secret".encode(),
    "a lone line separator": "sec\u2028ret".encode(),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_bad_file_of_tokens_stops_the_start_and_is_not_quoted(tmp_path, content) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        BearerTokens(path)
    assert str(path) in str(error.value)
    for quoted in ("ret", "sec", "0xff"):
        assert quoted not in str(error.value).replace("tokens", "")


@pytest.mark.parametrize("content", [*BAD.values(), None], ids=[*BAD, "gone"])
def test_while_the_file_of_tokens_is_bad_the_last_good_ones_hold(tmp_path, content, caplog) -> None:
    path = tmp_path / "tokens"
    path.write_text("search secret")
    tokens = BearerTokens(path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for _ in range(3):
        assert tokens.name_of("secret") == "search"
        assert tokens.name_of("ret") is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    replace(path, b"search renewed")
    assert tokens.name_of("secret") is None
    assert tokens.name_of("renewed") == "search"


def test_what_editors_leave_in_a_file_of_tokens_is_no_part_of_a_token(tmp_path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(b"\xef\xbb\xbfsearch  secret \r\n\r\n\tfetch\tother\r\n")
    tokens = BearerTokens(path)
    assert (tokens.name_of("secret"), tokens.name_of("other")) == ("search", "fetch")


def test_watched_files_are_read_only_when_they_change(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    watched = ReloadingFiles(path)
    first = watched.read()
    assert watched.read() is first
    replace(path, b"2")
    assert watched.read() == (b"2",)


async def test_calls_need_a_token_and_probes_do_not(tmp_path) -> None:
    path = tmp_path / "tokens"
    path.write_text("search secret")
    async with serving(Scripted(), PlainSettings(auth_tokens_file=path)) as served:
        await call(served.address, ChannelSettings(token="secret"))
        for wrong in (None, "Secret", "secret-"):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(served.address, ChannelSettings(token=wrong))
            assert (told(error.value).code, told(error.value).reason) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "UNAUTHENTICATED",
            )
        health = health_pb2_grpc.HealthStub(served.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == 1


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic secret", "bearer  ", "Bearer secret,other", "=" * 5000]
)
async def test_any_other_authorization_is_refused(tmp_path, value) -> None:
    path = tmp_path / "tokens"
    path.write_text("search secret")
    async with serving(Scripted(), PlainSettings(auth_tokens_file=path)) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        for key in ("authorization", "authorization-bin"):
            sent = value.encode() + b"\xff" if key.endswith("-bin") else value
            error = await failure(stub.Embed(embed_pb2.EmbedRequest(), metadata=((key, sent),), timeout=10))
            assert told(error).reason == "UNAUTHENTICATED"


class Certificates:
    """A CA with a certificate for localhost, in files."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key, self.ca = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"
        self.issue()

    def issue(self) -> None:
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost", "127.0.0.1")
        replace(self.key, leaf.private_key_pem.bytes())
        replace(self.cert, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        replace(self.ca, authority.cert_pem.bytes())


async def test_mutual_tls(tmp_path) -> None:
    (tmp_path / "other").mkdir()
    files, other = Certificates(tmp_path), Certificates(tmp_path / "other")
    settings = PlainSettings(tls_cert=files.cert, tls_key=files.key, tls_ca=files.ca)
    async with serving(Scripted(), settings) as served:
        await call(served.address, ChannelSettings(tls=True, tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key))
        strangers = [
            ChannelSettings(attempts=1),
            ChannelSettings(attempts=1, tls=True, tls_ca=files.ca),
            ChannelSettings(attempts=1, tls=True, tls_ca=files.ca, tls_cert=other.cert, tls_key=other.key),
            ChannelSettings(attempts=1, tls=True, tls_ca=other.ca, tls_cert=files.cert, tls_key=files.key),
        ]
        for stranger in strangers:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(served.address, stranger)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


class Clock:
    """Seconds pass when the test says so."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


async def test_a_channel_shows_its_renewed_certificate(tmp_path) -> None:
    """Both sides' files are replaced, by another CA: old connections end well, new calls are made with the new ones."""
    files, clock = Certificates(tmp_path), Clock()
    began, release = asyncio.Event(), asyncio.Event()

    async def answer(request, context):
        if isinstance(request, embed_pb2.EmbedRequest) and request.texts:
            began.set()
            await release.wait()

    settings = PlainSettings(tls_cert=files.cert, tls_key=files.key, tls_ca=files.ca)
    mutual = ChannelSettings(tls=True, tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key, attempts=1)
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


async def test_a_renewed_certificate_serves_the_next_connection(tmp_path) -> None:
    files = Certificates(tmp_path)
    settings = PlainSettings(tls_cert=files.cert, tls_key=files.key)
    async with serving(Scripted(), settings) as served:
        await call(served.address, ChannelSettings(tls=True, tls_ca=files.ca))
        await asyncio.to_thread(files.issue)
        await call(served.address, ChannelSettings(tls=True, tls_ca=files.ca))


def garbage(files: Certificates, what: str) -> None:
    match what:
        case "truncated":
            for path in (files.cert, files.key, files.ca):
                replace(path, path.read_bytes()[:100])
        case "empty":
            for path in (files.cert, files.key, files.ca):
                replace(path, b"")
        case "another's key":
            replace(files.key, trustme.CA().issue_cert("localhost").private_key_pem.bytes())
        case "gone":
            files.cert.unlink()


@pytest.mark.parametrize("what", ["truncated", "empty", "another's key", "gone"])
async def test_while_tls_files_are_bad_both_sides_go_on_with_the_last_good_ones(tmp_path, what, caplog) -> None:
    for side in ("server", "client"):
        (tmp_path / side).mkdir()
    files = Certificates(tmp_path / "server")
    for path in (files.cert, files.key, files.ca):
        (tmp_path / "client" / path.name).write_bytes(path.read_bytes())
    mine, clock = Certificates.__new__(Certificates), Clock()
    mine.cert, mine.key, mine.ca = (tmp_path / "client" / path.name for path in (files.cert, files.key, files.ca))
    settings = PlainSettings(tls_cert=files.cert, tls_key=files.key, tls_ca=files.ca)
    mutual = ChannelSettings(tls=True, tls_ca=mine.ca, tls_cert=mine.cert, tls_key=mine.key, attempts=1)
    async with serving(Scripted(), settings) as served, channel(served.address, Telemetry(), mutual) as to:
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


@pytest.mark.parametrize("what", ["truncated", "empty", "another's key"])
async def test_bad_tls_files_stop_the_start(tmp_path, what) -> None:
    files = Certificates(tmp_path)
    garbage(files, what)
    with pytest.raises(ValueError, match=r"tls.crt and .*tls.key are not"):
        async with serving(Scripted(), PlainSettings(tls_cert=files.cert, tls_key=files.key)):
            pass
    with pytest.raises(ValueError, match="in PEM"):
        channel("localhost:1", Telemetry(), ChannelSettings(tls=True, tls_cert=files.cert, tls_key=files.key))
