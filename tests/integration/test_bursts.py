"""Thousands of calls in the same moment."""

import asyncio
from collections import Counter

import grpc
import pytest

from deploy.local.stack import Stack
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

CALLS, CHANNELS = 3000, 4


@pytest.mark.parametrize("part", ["gateway", "embed"])
async def test_none_is_cancelled_without_a_word(stack: Stack, part: str) -> None:
    """By itself grpc cancels calls when more than 1,000 wait to be taken."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    channels = [grpc.aio.insecure_channel(stack.addresses[part], options) for _ in range(CHANNELS)]
    stubs = [embed_pb2_grpc.EmbedServiceStub(channel) for channel in channels]
    for stub in stubs:
        await stub.Embed(embed_pb2.EmbedRequest(texts=["once"]), timeout=30)

    async def call(number: int) -> str:
        try:
            await stubs[number % CHANNELS].Embed(embed_pb2.EmbedRequest(texts=["once"]), timeout=50)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    seen = Counter(await asyncio.gather(*(call(number) for number in range(CALLS))))
    assert set(seen) <= {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert seen["OK"] > 0
    for channel in channels:
        await channel.close()
