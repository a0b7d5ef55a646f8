"""Calls over a limit are refused with advice, and before their request is read."""

import asyncio
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.runtime.interceptors import calls
from tests.support.scripted import SERVICE, Scripted
from tests.support.serving import PlainSettings, Served, failure, rich_status, serving
from tests.support.waiting import until
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

CODES = grpc.StatusCode


def unread(served: Served) -> grpc.aio.StreamUnaryCall[bytes, bytes]:
    """A call of Embed that never sends its request."""
    call: grpc.aio.StreamUnaryCall[bytes, bytes] = served.channel.stream_unary(f"/{SERVICE}/Embed")()
    return call


async def test_over_the_limit_is_refused_until_a_call_ends() -> None:
    release = asyncio.Event()

    async def answer(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await release.wait()

    application = Scripted(answer)
    async with serving(application, PlainSettings(max_calls=2)) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        kept = [asyncio.ensure_future(stub.Embed(embed_pb2.EmbedRequest(), timeout=30)) for _ in range(2)]
        await until(lambda: application.calls == 2)
        for call in (stub.Embed(embed_pb2.EmbedRequest(), timeout=30), unread(served)):
            seen = rich_status(await failure(call))
            assert (seen.code, seen.reason) == (CODES.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert seen.detail(error_details_pb2.RetryInfo).retry_delay.ToSeconds() == 1
            assert seen.trailers["grpc-retry-pushback-ms"] == "-1"
        assert application.calls == 2
        check = health_pb2_grpc.HealthStub(served.channel).Check
        assert (await check(health_pb2.HealthCheckRequest(), timeout=10)).status == 1
        release.set()
        await asyncio.gather(*kept)
        await stub.Embed(embed_pb2.EmbedRequest(), timeout=30)


async def test_a_call_counts_while_its_request_is_awaited() -> None:
    async with serving(Scripted(), PlainSettings(max_calls=1)) as served:
        waiting = unread(served)
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)

        async def code() -> grpc.StatusCode:
            try:
                await stub.Embed(embed_pb2.EmbedRequest(), timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return CODES.OK

        while (seen := await code()) is CODES.OK:  # until the server has heard of the call
            if waiting.done():  # it was the one too many
                waiting = unread(served)
        assert seen is CODES.RESOURCE_EXHAUSTED
        waiting.cancel()
        while await code() is CODES.RESOURCE_EXHAUSTED:
            pass


async def test_watches_and_reflections_have_limits_of_their_own(monkeypatch: Any) -> None:
    monkeypatch.setattr(calls, "_MAX_WATCHES", 2)
    monkeypatch.setattr(calls, "_MAX_REFLECTIONS", 1)
    async with serving(Scripted(), PlainSettings(max_calls=1)) as served:
        health = health_pb2_grpc.HealthStub(served.channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            assert (await watch.read()).status == 1
        reflect = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo
        asked = reflect()
        await asked.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
        await asked.read()
        for refused in (health.Watch(health_pb2.HealthCheckRequest()), reflect()):
            assert rich_status(await failure(refused.read())).reason == "OVERLOADED"
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == 1
        await embed_pb2_grpc.EmbedServiceStub(served.channel).Embed(embed_pb2.EmbedRequest(), timeout=10)
        watches[0].cancel()
