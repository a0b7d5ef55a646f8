"""TLS of a server: who is let in, and certificates that are replaced or bad."""

import asyncio
from pathlib import Path

import grpc
import pytest

from services.runtime.channel import ChannelSettings, channel
from services.runtime.telemetry.setup import Telemetry
from tests.support.certificates import Certificates, garbage
from tests.support.scripted import Scripted, call
from tests.support.serving import PlainSettings, serving


async def test_mutual_tls(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files, other = Certificates(tmp_path), Certificates(tmp_path / "other")
    settings = PlainSettings(tls_cert=files.cert, tls_key=files.key, tls_ca=files.ca)
    async with serving(Scripted(), settings) as served:
        await call(served.address, ChannelSettings(tls=True, tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key))
        strangers = [
            ChannelSettings(),
            ChannelSettings(tls=True, tls_ca=files.ca),
            ChannelSettings(tls=True, tls_ca=files.ca, tls_cert=other.cert, tls_key=other.key),
            ChannelSettings(tls=True, tls_ca=other.ca, tls_cert=files.cert, tls_key=files.key),
        ]
        for stranger in strangers:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(served.address, stranger)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_serves_the_next_connection(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    settings = PlainSettings(tls_cert=files.cert, tls_key=files.key)
    async with serving(Scripted(), settings) as served:
        await call(served.address, ChannelSettings(tls=True, tls_ca=files.ca))
        await asyncio.to_thread(files.issue)
        await call(served.address, ChannelSettings(tls=True, tls_ca=files.ca))


@pytest.mark.parametrize("what", ["truncated", "empty", "another's key"])
async def test_bad_tls_files_stop_the_start(tmp_path: Path, what: str) -> None:
    files = Certificates(tmp_path)
    garbage(files, what)
    with pytest.raises(ValueError, match=r"tls.crt and .*tls.key are not"):
        async with serving(Scripted(), PlainSettings(tls_cert=files.cert, tls_key=files.key)):
            pass
    with pytest.raises(ValueError, match="in PEM"):
        channel("localhost:1", Telemetry(), ChannelSettings(tls=True, tls_cert=files.cert, tls_key=files.key))
