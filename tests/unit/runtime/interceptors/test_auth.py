"""Calls need a bearer token, and probes do not."""

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.channel import ChannelSettings
from tests.support.scripted import Scripted, call
from tests.support.serving import PlainSettings, failure, rich_status, serving
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
