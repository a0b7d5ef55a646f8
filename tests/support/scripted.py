"""An EmbedService whose answers are written by the test: for what goes on around a servicer."""
# ruff: noqa: N802 - methods are named by the contract

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from services.runtime.channel import ChannelSettings, channel
from services.runtime.lifecycle import Lifecycle
from services.runtime.telemetry.setup import Telemetry
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

SERVICE = "winnow.embed.v1.EmbedService"


class Scripted(embed_pb2_grpc.EmbedServiceServicer):
    """An application. Embed awaits `answer(request, context)`; EmbedStream does so for each request."""

    services = (SERVICE,)
    interceptors = ()

    def __init__(self, answer: Callable[..., Awaitable[object]] | None = None) -> None:
        self.answer = answer
        self.calls = 0

    def register(self, server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        self.lifecycle = lifecycle
        embed_pb2_grpc.add_EmbedServiceServicer_to_server(self, server)

    async def start(self) -> None: ...

    async def drain(self) -> None: ...

    async def close(self) -> None: ...

    async def Embed(
        self, request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> embed_pb2.EmbedResponse:
        self.calls += 1
        if self.answer is not None:
            await self.answer(request, context)
        return embed_pb2.EmbedResponse()

    async def EmbedStream(
        self, request_iterator: AsyncIterator[embed_pb2.EmbedStreamRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        self.calls += 1
        async for request in request_iterator:
            if self.answer is not None:
                await self.answer(request, context)
            yield embed_pb2.EmbedStreamResponse()

    async def GetModel(
        self, request: embed_pb2.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> embed_pb2.GetModelResponse:
        return embed_pb2.GetModelResponse()


async def call(address: str, settings: ChannelSettings) -> None:
    """One Embed over a channel of its own."""
    async with channel(address, Telemetry(), settings) as to:
        await embed_pb2_grpc.EmbedServiceStub(to).Embed(embed_pb2.EmbedRequest(), timeout=10)
